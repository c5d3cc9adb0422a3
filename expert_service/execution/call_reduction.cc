#include "expert_service/execution/call_reduction.h"

#include <numeric>

#include "services/wire/row_sum.h"

namespace expertmesh::expert {
namespace {

bool GoesAlone(const ExpertWork& work, int64_t row) {
  return work.num_sums == 0 || work.row_sum[row] == kNoSum;
}

}  // namespace

void CallReduction::Build(absl::Span<ExpertWork* const> works,
                          absl::Span<const RowRange> ranges) {
  MakeRoom(works, ranges);
  uint32_t at = 0;  // in the call
  for (const RowRange& range : ranges) {
    const ExpertWork& work = *works[range.work];
    for (int64_t row = range.first; row < range.last; ++row, ++at) {
      if (GoesAlone(work, row)) {
        lone_rows_[next_[range.work].lone++] = at;
        continue;
      }
      const uint32_t i = ends_[next_[range.work].sum + work.row_sum[row]]++;
      sum_rows_[i] = at;
      sum_weights_[i] = work.row_weight[row];
    }
  }
}

void CallReduction::MakeRoom(absl::Span<ExpertWork* const> works,
                             absl::Span<const RowRange> ranges) {
  places_.clear();
  next_.clear();
  Next next;
  for (size_t i = 0; i < works.size(); ++i) {
    next_.push_back(next);
    if (works[i] == nullptr) continue;
    places_.push_back({i, next.lone, next.sum});
    next.lone += static_cast<uint32_t>(works[i]->num_lone_rows);
    next.sum += static_cast<uint32_t>(works[i]->num_sums);
  }
  lone_rows_.resize(next.lone);
  sum_offsets_.assign(next.sum + 1, 0);
  for (const RowRange& range : ranges) {
    const ExpertWork& work = *works[range.work];
    for (int64_t row = range.first; row < range.last; ++row) {
      if (GoesAlone(work, row)) continue;
      ++sum_offsets_[next_[range.work].sum + work.row_sum[row] + 1];
    }
  }
  std::partial_sum(sum_offsets_.begin(), sum_offsets_.end(),
                   sum_offsets_.begin());
  ends_.assign(sum_offsets_.begin(), sum_offsets_.end() - 1);
  sum_rows_.resize(sum_offsets_.back());
  sum_weights_.resize(sum_offsets_.back());
}

}  // namespace expertmesh::expert
