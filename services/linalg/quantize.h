#pragma once

// Weights to codes and scales. The scale of an output and, for int4, the
// steps of its groups are chosen for the least squared error among a few
// candidates; nothing but the weights themselves is looked at.

#include <cstddef>
#include <cstdint>

namespace expertmesh {

// Quantizes one output's weights into its column of a panel, which holds zeros.
//   weights  [k], finite
//   panel    int8 or int4 panel (isa/panel_layout.h)
//   column   0 to kPanelWidth - 1
void QuantizeToInt8(const float* weights, int64_t k, int64_t column,
                    std::byte* panel);
void QuantizeToInt4(const float* weights, int64_t k, int64_t column,
                    std::byte* panel);

}  // namespace expertmesh
