#pragma once

// A batch on its way through an expert service, without the network.

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/core/dtype.h"
#include "services/wire/payload_pool.h"

namespace expertmesh::expert {

// How long a batch waited and ran.
struct WorkTiming {
  absl::Duration queued;
  absl::Duration computed;
};

// What experts made of a batch's rows.
struct WorkOutput {
  PayloadRef rows;  // [num_lone_rows, hidden_size] of dtype, in their order
  PayloadRef sums;  // [num_sums, hidden_size] f32
};

// Made by the API for one batch, filled in before ExpertQueue::Add, and lent to
// queue and executor until its one Finish; never copied. Fields are read-only
// after Add.
class ExpertWork {
 public:
  virtual ~ExpertWork() = default;
  ExpertWork() = default;
  ExpertWork(const ExpertWork&) = delete;
  ExpertWork& operator=(const ExpertWork&) = delete;

  uint32_t layer = 0;
  DType dtype = DType::kF32;                 // of rows in and out
  absl::Span<const uint32_t> expert_ids;     // [num_groups], ascending
  absl::Span<const uint32_t> group_offsets;  // [num_groups + 1]
  int64_t num_rows = 0;                      // group_offsets[num_groups]
  // Rows that go back added up, in f32, from zero and in their order; empty
  // without any, else [num_rows].
  absl::Span<const float> row_weight;
  absl::Span<const uint32_t>
      row_sum;  // below num_sums; kNoSum: goes back alone
  int64_t num_sums = 0;
  int64_t num_lone_rows = 0;                          // rows that go back alone
  absl::Duration timeout = absl::InfiniteDuration();  // from arrival

  // Copies rows [first, last), in the batch's order, to `out`.
  virtual void CopyRows(int64_t first, int64_t last, std::byte* out) const = 0;

  // The outcome; `output` is empty unless `status` is OK. Must not block, and
  // may free or reuse the work.
  virtual void Finish(const absl::Status& status, WorkOutput output,
                      const WorkTiming& timing) = 0;

  // When Add took it, on the queue's clock.
  absl::Duration arrival() const { return arrival_; }

 private:
  friend class ExpertQueue;
  absl::Duration arrival_;
  bool taken_ = false;          // by Add, and not settled yet
  ExpertWork* next_ = nullptr;  // behind this one, in its stream
};

}  // namespace expertmesh::expert
