#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <cstdint>
#include <deque>
#include <vector>

#include "absl/time/time.h"
#include "router_service/transport/expert_transport.h"
#include "services/wire/batch_codec.h"

namespace expertmesh::router {

// A batch that was sent and not answered yet. Whoever takes it out of the table
// owes its completion a Done, so it is told once.
struct InFlightBatch {
  uint64_t sequence_number = 0;
  BatchCompletion* completion = nullptr;
  uint32_t num_rows = 0;
  ResultShape answer;  // what it must be
  absl::Duration sent_at = absl::ZeroDuration();
  absl::Duration deadline = absl::InfiniteDuration();
};

// The batches in flight on one endpoint, by sequence number. Entries are
// reused, so steady traffic allocates nothing. Not thread-safe.
class InFlightTable {
 public:
  struct Entry {
    InFlightBatch batch;
    grpc::ByteBuffer message;  // until it is written
  };

  // Enters `batch` under a sequence number never used before.
  Entry* Add(const InFlightBatch& batch);

  // Null when the batch is not in flight (any more).
  Entry* Find(uint64_t sequence_number);

  // Moves the batch out; false when it is not in flight.
  bool Take(uint64_t sequence_number, InFlightBatch* batch);

  // Moves out every batch whose deadline is `now` or earlier, appending to
  // *batches. Returns the earliest deadline left.
  absl::Duration TakeExpired(absl::Duration now,
                             std::vector<InFlightBatch>* batches);
  void TakeAll(std::vector<InFlightBatch>* batches) {
    TakeExpired(absl::InfiniteDuration(), batches);
  }

  // Whether Add ever gave this number out.
  bool WasIssued(uint64_t sequence_number) const;

  bool empty() const { return free_.size() == entries_.size(); }
  // Rows of all batches in flight.
  uint64_t rows() const { return rows_; }

 private:
  // A sequence number is (use << kIndexBits | index of its entry).
  static constexpr int kIndexBits = 24;

  void Free(uint32_t index);

  std::deque<Entry> entries_;
  std::vector<uint32_t> free_;
  uint64_t uses_ = 0;
  uint64_t rows_ = 0;
};

}  // namespace expertmesh::router
