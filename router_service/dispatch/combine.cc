#include "router_service/dispatch/combine.h"

#include <algorithm>
#include <cstring>

namespace expertmesh::router {
namespace {

float Load(const float* x) { return *x; }
float Load(const BF16* x) { return ToF32(*x); }
// binary16 has no type of its own here; its bits are all that is stored.
float Load(const uint16_t* x) { return F16ToF32(*x); }

// One multiply and one add per element, never fused: the elements of a row are
// independent, so any vector width gives the same bits.
template <typename T>
void CombineRows(const DispatchPlan& plan, int64_t top_k, const T* rows,
                 absl::Span<const uint32_t> row_position, int64_t hidden_size,
                 int64_t first_token, int64_t last_token, float* y) {
  for (int64_t token = first_token; token < last_token; ++token) {
    float* const sum = y + token * hidden_size;
    std::fill_n(sum, hidden_size, 0.0f);
    for (int64_t place = 0; place < top_k; ++place) {
      const int32_t row = plan.token_rows[token * top_k + place];
      if (row < 0) break;
      const float weight = plan.row_weight[row];
      const int64_t position = row_position.empty() ? row : row_position[row];
      const T* const x = rows + position * hidden_size;
      for (int64_t i = 0; i < hidden_size; ++i) sum[i] += weight * Load(x + i);
    }
  }
}

}  // namespace

void Combine(const DispatchPlan& plan, int64_t top_k, DType dtype,
             const std::byte* rows, absl::Span<const uint32_t> row_position,
             int64_t hidden_size, int64_t first_token, int64_t last_token,
             float* y) {
  const auto combine = [&](const auto* typed_rows) {
    CombineRows(plan, top_k, typed_rows, row_position, hidden_size, first_token,
                last_token, y);
  };
  switch (dtype) {
    case DType::kF32:
      return combine(reinterpret_cast<const float*>(rows));
    case DType::kBF16:
      return combine(reinterpret_cast<const BF16*>(rows));
    case DType::kF16:
      return combine(reinterpret_cast<const uint16_t*>(rows));
  }
}

}  // namespace expertmesh::router
