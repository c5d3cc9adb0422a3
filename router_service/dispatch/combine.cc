#include "router_service/dispatch/combine.h"

#include <algorithm>
#include <cmath>

#include "services/linalg/vector_ops.h"

namespace expertmesh::router {
namespace {

// y += a x, rounded after the product and after the sum for every type, so that
// any vector width gives the same bits.
void AddRow(float a, const float* x, int64_t n, float* y) {
  AddScaled(a, x, n, y);
}
void AddRow(float a, const BF16* x, int64_t n, float* y) {
  AddScaledBF16(a, x, n, y);
}
// binary16 has no type of its own here; its bits are all that is stored.
void AddRow(float a, const uint16_t* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * F16ToF32(x[i]);
}

float AsF32(BF16 x) { return ToF32(x); }
float AsF32(uint16_t x) { return F16ToF32(x); }

template <typename T>
void CombineRows(const DispatchPlan& plan, int64_t top_k, const T* rows,
                 int64_t hidden_size, int64_t first_token, int64_t last_token,
                 float* y) {
  for (int64_t token = first_token; token < last_token; ++token) {
    float* const sum = y + token * hidden_size;
    std::fill_n(sum, hidden_size, 0.0f);
    for (int64_t place = 0; place < top_k; ++place) {
      const int32_t row = plan.token_rows[token * top_k + place];
      if (row < 0) break;
      AddRow(plan.row_weight[row], rows + row * hidden_size, hidden_size, sum);
    }
  }
}

template <typename T>
bool AreAllFinite(const T* row, int64_t n) {
  return std::all_of(row, row + n, [](T x) { return std::isfinite(AsF32(x)); });
}

}  // namespace

bool IsFiniteRow(DType dtype, const std::byte* row, int64_t hidden_size) {
  switch (dtype) {
    case DType::kF32:
      return AllFinite(reinterpret_cast<const float*>(row), hidden_size);
    case DType::kBF16:
      return AreAllFinite(reinterpret_cast<const BF16*>(row), hidden_size);
    case DType::kF16:
      return AreAllFinite(reinterpret_cast<const uint16_t*>(row), hidden_size);
  }
  return false;
}

void Combine(const DispatchPlan& plan, int64_t top_k, DType dtype,
             const std::byte* rows, int64_t hidden_size, int64_t first_token,
             int64_t last_token, float* y) {
  const auto combine = [&](const auto* typed_rows) {
    CombineRows(plan, top_k, typed_rows, hidden_size, first_token, last_token,
                y);
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
