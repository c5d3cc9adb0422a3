#include "expert_service/execution/row_groups.h"

#include <algorithm>
#include <utility>

namespace expertmesh::expert {

void RowGroups::Reset(absl::Span<ExpertWork* const> works) {
  ranges_.clear();
  next_ = 0;
  taken_ = 0;
  for (size_t i = 0; i < works.size(); ++i) {
    if (works[i] == nullptr) continue;
    const ExpertWork& work = *works[i];
    for (size_t g = 0; g < work.expert_ids.size(); ++g) {
      const RowRange range{work.expert_ids[g], static_cast<int32_t>(i),
                           work.group_offsets[g], work.group_offsets[g + 1]};
      if (range.num_rows() > 0) ranges_.push_back(range);
    }
  }
  std::sort(ranges_.begin(), ranges_.end(),
            [](const RowRange& a, const RowRange& b) {
              return std::pair(a.expert, a.work) < std::pair(b.expert, b.work);
            });
}

bool RowGroups::NextChunk(int64_t max_rows, RowChunk* chunk) {
  chunk->ranges.clear();
  chunk->experts.clear();
  chunk->offsets.assign(1, 0);
  while (next_ < ranges_.size() && chunk->num_rows() < max_rows) {
    RowRange range = ranges_[next_];
    range.first += taken_;
    const int64_t room = max_rows - chunk->num_rows();
    if (range.num_rows() > room) {
      range.last = range.first + room;
      taken_ += room;
    } else {
      ++next_;
      taken_ = 0;
    }
    if (chunk->experts.empty() || chunk->experts.back() != range.expert) {
      chunk->experts.push_back(range.expert);
      chunk->offsets.push_back(chunk->offsets.back());
    }
    chunk->offsets.back() += static_cast<uint32_t>(range.num_rows());
    chunk->ranges.push_back(range);
  }
  return !chunk->ranges.empty();
}

}  // namespace expertmesh::expert
