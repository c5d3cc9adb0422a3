#pragma once

// A batch on its way through an expert service, without the network.

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/core/dtype.h"

namespace expertmesh {
class PayloadRef;
}

namespace expertmesh::expert {

// How long a batch waited and ran.
struct WorkTiming {
  absl::Duration queued;
  absl::Duration computed;
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
  absl::Duration timeout = absl::InfiniteDuration();  // from arrival

  // Copies rows [first, last), in the batch's order, to `out`.
  virtual void CopyRows(int64_t first, int64_t last, std::byte* out) const = 0;

  // The outcome; `rows` is [num_rows, hidden_size] of dtype when `status` is
  // OK, else empty. Must not block, and may free or reuse the work.
  virtual void Finish(const absl::Status& status, PayloadRef rows,
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
