#pragma once

// Weights to codes and scales. The scale of an output and, for int4, the
// steps of its groups are chosen for the least squared error among a few
// candidates; nothing but the weights themselves is looked at, and every
// instruction set chooses the same to the bit.

#include <cstddef>
#include <cstdint>

#include "services/linalg/weight_format.h"

namespace expertmesh {

// Outputs that are quantized together.
inline constexpr int64_t kQuantizeWidth = 16;

// Elements along k that QuantizeColumns wants.
int64_t QuantizeK(int64_t k);

// Quantizes the weights of neighbouring outputs into their columns of a panel,
// which holds zeros. An output of zeros leaves them.
//   weights  [QuantizeK(k), kQuantizeWidth], zeros from k on; overwritten
//   format   int8 or int4
//   column   of the first output, a multiple of kQuantizeWidth
//   panel    of that format (isa/panel_layout.h)
// False, with nothing written, where a weight is not finite.
bool QuantizeColumns(float* weights, int64_t k, WeightFormat format,
                     int64_t column, std::byte* panel);

}  // namespace expertmesh
