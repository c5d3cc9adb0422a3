#pragma once

// The order in which rows of several batches run: by expert, then by batch.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "expert_service/batching/expert_work.h"

namespace expertmesh::expert {

// Rows [first, last) of one batch, all of one expert.
struct RowRange {
  uint32_t expert = 0;
  int32_t work = 0;  // index into the works merged
  int64_t first = 0;
  int64_t last = 0;

  int64_t num_rows() const { return last - first; }
};

// Rows that run in one kernel call, one after the other.
struct RowChunk {
  std::vector<RowRange> ranges;
  // Group g is expert experts[g] with rows [offsets[g], offsets[g + 1]); every
  // expert is one group, whichever batches its rows are of.
  std::vector<uint32_t> experts;
  std::vector<uint32_t> offsets;

  int64_t num_rows() const { return offsets.empty() ? 0 : offsets.back(); }
};

// Walks the rows of merged batches in chunks. Meant to be reused: allocates
// nothing once its vectors have grown. One thread.
class RowGroups {
 public:
  // Starts over with the rows of `works`; null ones are left out.
  void Reset(absl::Span<ExpertWork* const> works);

  // The next at most `max_rows` rows; false when there are no more.
  bool NextChunk(int64_t max_rows, RowChunk* chunk);

 private:
  std::vector<RowRange> ranges_;  // by expert, then by work
  size_t next_ = 0;               // of ranges_
  int64_t taken_ = 0;             // rows of ranges_[next_] already given
};

}  // namespace expertmesh::expert
