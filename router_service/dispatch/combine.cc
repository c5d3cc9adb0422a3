#include "router_service/dispatch/combine.h"

#include <algorithm>
#include <cmath>

#include "absl/types/span.h"
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

// Columns that are added up apart at a time, on the stack.
constexpr int64_t kColumns = 1024;

// y += the sum of rows, which begins at zero.
template <typename T>
void AddGroup(const DispatchPlan& plan, absl::Span<const int32_t> group,
              const T* rows, int64_t hidden_size, float* y) {
  alignas(64) float sum[kColumns];
  for (int64_t begin = 0; begin < hidden_size; begin += kColumns) {
    const int64_t width = std::min(kColumns, hidden_size - begin);
    std::fill_n(sum, width, 0.0f);
    for (const int32_t row : group) {
      AddRow(plan.row_weight[row], rows + row * hidden_size + begin, width,
             sum);
    }
    Add(sum, width, y + begin);
  }
}

template <typename T>
void CombineToken(const DispatchPlan& plan, int64_t top_k,
                  const ExpertOutputs& outputs, const T* rows,
                  int64_t hidden_size, int64_t token, float* y) {
  const int32_t* const token_rows = plan.token_rows.data() + token * top_k;
  std::fill_n(y, hidden_size, 0.0f);
  int64_t end;
  for (int64_t place = 0; place < top_k && token_rows[place] >= 0;
       place = end) {
    end = outputs.groups == nullptr
              ? place + 1
              : outputs.groups->EndOfGroup(token_rows, top_k, place);
    const float* const sum = outputs.sums == nullptr
                                 ? nullptr
                                 : outputs.sums->Find(token, place, end);
    if (sum != nullptr) {
      Add(sum, hidden_size, y);
    } else if (place == 0 || end == place + 1) {
      // Added to zero, or alone, rows need no sum of their own: no bit differs.
      for (; place < end; ++place) {
        const int32_t row = token_rows[place];
        AddRow(plan.row_weight[row], rows + row * hidden_size, hidden_size, y);
      }
    } else {
      AddGroup(plan, absl::MakeConstSpan(token_rows + place, token_rows + end),
               rows, hidden_size, y);
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

void Combine(const DispatchPlan& plan, int64_t top_k,
             const ExpertOutputs& outputs, int64_t hidden_size,
             int64_t first_token, int64_t last_token, float* y) {
  const auto combine = [&](const auto* rows) {
    for (int64_t token = first_token; token < last_token; ++token) {
      CombineToken(plan, top_k, outputs, rows, hidden_size, token,
                   y + token * hidden_size);
    }
  };
  switch (outputs.dtype) {
    case DType::kF32:
      return combine(reinterpret_cast<const float*>(outputs.rows));
    case DType::kBF16:
      return combine(reinterpret_cast<const BF16*>(outputs.rows));
    case DType::kF16:
      return combine(reinterpret_cast<const uint16_t*>(outputs.rows));
  }
}

}  // namespace expertmesh::router
