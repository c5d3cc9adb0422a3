#include "services/linalg/quantize.h"

#include "services/linalg/isa/kernels.h"
#include "services/linalg/isa/panel_layout.h"

namespace expertmesh {

int64_t QuantizeK(int64_t k) { return RoundUp(k, kInt4Group); }

bool QuantizeColumns(float* weights, int64_t k, WeightFormat format,
                     int64_t column, std::byte* panel) {
  const int index = format == WeightFormat::kInt8 ? 0 : 1;
  return ActiveKernels().quantize_columns[index](
      {weights, QuantizeK(k), panel, column});
}

}  // namespace expertmesh
