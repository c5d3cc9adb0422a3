#include "services/cli/expert_bars.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace expertmesh {
namespace {

constexpr absl::string_view kEighths[] = {"▁", "▂", "▃", "▄",
                                          "▅", "▆", "▇", "█"};
constexpr size_t kMaxBarsPerLayer = 32;

// A model or a router with more than this is broken; its numbers come from the
// network and size our vectors.
constexpr uint32_t kMaxLayers = 4096;
constexpr uint32_t kMaxExperts = 65536;

std::vector<uint64_t> Folded(absl::Span<const uint64_t> values,
                             size_t max_bars) {
  const size_t per_bar = (values.size() + max_bars - 1) / max_bars;
  std::vector<uint64_t> folded((values.size() + per_bar - 1) / per_bar);
  for (size_t i = 0; i < values.size(); ++i) folded[i / per_bar] += values[i];
  return folded;
}

}  // namespace

std::string Bars(absl::Span<const uint64_t> values, size_t max_bars) {
  if (values.empty()) return "";
  const std::vector<uint64_t> folded = Folded(values, max_bars);
  const uint64_t greatest = *std::max_element(folded.begin(), folded.end());
  std::string bars;
  for (const uint64_t value : folded) {
    if (value == 0) {
      absl::StrAppend(&bars, "·");
    } else {
      const double share = static_cast<double>(value) / greatest;
      const int eighth = std::clamp(static_cast<int>(share * 8 + 0.5), 1, 8);
      absl::StrAppend(&bars, kEighths[eighth - 1]);
    }
  }
  return bars;
}

void ExpertBars::Add(uint32_t layer, uint32_t expert_id, uint64_t rows) {
  if (layer >= kMaxLayers || expert_id >= kMaxExperts) return;
  num_experts_ = std::max(num_experts_, expert_id + 1);
  if (layers_.size() <= layer) layers_.resize(layer + 1);
  if (layers_[layer].size() <= expert_id) layers_[layer].resize(expert_id + 1);
  layers_[layer][expert_id] += rows;
}

std::string ExpertBars::Line(size_t width) const {
  constexpr absl::string_view kTitle = "experts";
  std::string line(kTitle);
  size_t columns = kTitle.size();
  size_t left_out = 0;
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    if (layers_[layer].empty()) continue;  // a dense layer
    std::vector<uint64_t> rows = layers_[layer];
    rows.resize(num_experts_);
    const std::string label = absl::StrCat("  ", layer, " ");
    const size_t bars = Folded(rows, kMaxBarsPerLayer).size();
    // Room for " +12 layers" stays free.
    if (left_out > 0 || columns + label.size() + bars + 12 > width) {
      ++left_out;
      continue;
    }
    absl::StrAppend(&line, label, Bars(rows, kMaxBarsPerLayer));
    columns += label.size() + bars;
  }
  if (left_out > 0) absl::StrAppend(&line, " +", left_out, " layers");
  return line;
}

}  // namespace expertmesh
