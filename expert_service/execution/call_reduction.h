#pragma once

// Which outputs of a kernel call go back added up, for kernels that add.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "expert_service/batching/expert_work.h"
#include "expert_service/execution/row_groups.h"
#include "expert_service/kernels/grouped_ffn.h"

namespace expertmesh::expert {

// The outputs of one call that has all rows of some works: the lone rows of one
// work after the other, then their sums likewise. Reused; allocates nothing
// once its vectors have grown. One thread.
class CallReduction {
 public:
  // A work's outputs among all of the call.
  struct Place {
    size_t work;
    uint32_t first_lone;
    uint32_t first_sum;
  };

  // `ranges` are all rows of `works`, in the order of the call; null works have
  // none.
  void Build(absl::Span<ExpertWork* const> works,
             absl::Span<const RowRange> ranges);

  RowReduction view() const {
    return {sum_offsets_, sum_rows_, sum_weights_, lone_rows_};
  }
  // Of all works that are not null.
  absl::Span<const Place> places() const { return places_; }

 private:
  // Where a work's next lone row goes, and its first sum.
  struct Next {
    uint32_t lone = 0;
    uint32_t sum = 0;
  };

  // Gives every work its place, and every sum room for its rows.
  void MakeRoom(absl::Span<ExpertWork* const> works,
                absl::Span<const RowRange> ranges);

  std::vector<Place> places_;
  std::vector<Next> next_;      // [works]
  std::vector<uint32_t> ends_;  // of each sum, as far as it is filled
  std::vector<uint32_t> sum_offsets_;
  std::vector<uint32_t> sum_rows_;
  std::vector<float> sum_weights_;
  std::vector<uint32_t> lone_rows_;
};

}  // namespace expertmesh::expert
