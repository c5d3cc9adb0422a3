#pragma once

// The send contract between dispatch and whatever carries batches to experts
// (stop 6). Two implementations: gRPC, and experts in this process for tests.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/core/dtype.h"
#include "services/wire/payload_pool.h"
#include "services/wire/row_sum.h"

namespace expertmesh::router {

// One message: rows of one layer for experts of one endpoint, grouped by
// expert. The spans stay valid until Send returns.
struct ExpertBatch {
  uint32_t layer = 0;
  DType dtype = DType::kF32;  // of hidden_states and of the rows that come back
  uint32_t hidden_size = 0;
  uint32_t num_tokens = 0;
  // [num_tokens, hidden_size], rows RowBytes apart, each token once.
  PayloadRef hidden_states;
  absl::Span<const uint32_t> expert_ids;     // [num_groups], ascending
  absl::Span<const uint32_t> group_offsets;  // [num_groups + 1]
  absl::Span<const uint32_t> row_token;      // [num_rows]
  // Rows that come back added up: each times its weight, from zero and in the
  // order of the batch. Empty without any, else [num_rows].
  absl::Span<const float> row_weight;
  absl::Span<const uint32_t> row_sum;  // below num_sums; kNoSum: comes alone
  uint32_t num_sums = 0;
  // Trace contexts of requests that have rows in it.
  absl::Span<const std::string> traceparents;
  // The endpoint may leave the batch undone this long after its arrival.
  absl::Duration deadline = absl::InfiniteDuration();
  // After this long the batch fails here, and a later answer is ignored.
  absl::Duration timeout = absl::InfiniteDuration();

  size_t num_rows() const { return row_token.size(); }
  // Rows that come back by themselves.
  size_t num_lone_rows() const {
    return row_sum.empty() ? num_rows()
                           : std::count(row_sum.begin(), row_sum.end(), kNoSum);
  }
};

// The rows of an answer, [num_lone_rows, hidden_size] of the batch's dtype, in
// the order of its rows, and its sums, [num_sums, hidden_size] f32.
class AnsweredRows {
 public:
  virtual ~AnsweredRows() = default;
  // Copies rows [first, last).
  virtual void Copy(size_t first, size_t last, std::byte* out) const = 0;
  // Copies one sum.
  virtual void CopySum(size_t sum, std::byte* out) const = 0;
};

// What came of a batch.
struct BatchAnswer {
  // UNAVAILABLE (connection or peer gone), DEADLINE_EXCEEDED,
  // RESOURCE_EXHAUSTED (peer's queue full), FAILED_PRECONDITION (not hosted
  // there), INTERNAL (device fault, or a reply of the wrong shape). The message
  // names the endpoint.
  absl::Status status;
  const AnsweredRows* rows = nullptr;  // set when OK; dies with Done
  // Rows the endpoint lets us have unanswered from now on; 0: as before.
  uint32_t credit_rows = 0;
  // What its device computed for; zero: not told.
  absl::Duration computed = absl::ZeroDuration();
};

// Told once for every Send. Done runs on a thread of the transport, or of
// whoever is in AwaitBriefly, and must not block.
class BatchCompletion {
 public:
  virtual ~BatchCompletion() = default;
  virtual void Done(const BatchAnswer& answer) = 0;
};

// Thread-safe.
class ExpertTransport {
 public:
  virtual ~ExpertTransport() = default;
  // Sends `batch` to an endpoint by its index. Never blocks on the network;
  // `completion` hears of every outcome, possibly before Send returns.
  virtual void Send(int endpoint, const ExpertBatch& batch,
                    BatchCompletion* completion) = 0;

  // For a thread that waits for answers: where looking for them itself is
  // quicker than being woken, does so briefly, until `is_done`, which may be
  // called at any time. Returns whether it is. Holding no lock that Done takes.
  virtual bool AwaitBriefly(absl::FunctionRef<bool()> is_done) {
    return is_done();
  }
};

}  // namespace expertmesh::router
