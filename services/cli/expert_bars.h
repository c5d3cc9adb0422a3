#pragma once

// Which experts worked, as one line of small bars.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace expertmesh {

// "▁▂▁█": one bar for each value, scaled to the greatest; zero is a dot.
// More values than `max_bars` are added up in equal ranges.
std::string Bars(absl::Span<const uint64_t> values, size_t max_bars);

// Rows by layer and expert, added up over a request.
class ExpertBars {
 public:
  // Layers and experts may also be met as they come: pass 0.
  explicit ExpertBars(uint32_t num_experts) : num_experts_(num_experts) {}

  void Add(uint32_t layer, uint32_t expert_id, uint64_t rows);

  // "experts  0 ▁█▁▁  1 ▂▁▁█": layers in order, as many as fit into `width`
  // columns; how many are left out is said at the end.
  std::string Line(size_t width) const;

 private:
  uint32_t num_experts_;
  std::vector<std::vector<uint64_t>> layers_;
};

}  // namespace expertmesh
