#include "services/linalg/activation_row.h"

#include <algorithm>
#include <cmath>

#include "services/linalg/vector_ops.h"

namespace expertmesh {
namespace {

// The largest magnitude of a code that another sender may use.
constexpr float kMostSteps = 128;

}  // namespace

void StoreRow(const float* x, int64_t n, DType dtype, std::byte* row) {
  if (dtype == DType::kF32) {
    std::memcpy(row, x, n * sizeof(float));
  } else if (dtype == DType::kBF16) {
    ConvertToBF16(x, n, reinterpret_cast<BF16*>(row));
  } else {
    const float scale = QuantizeRow(
        x, n, reinterpret_cast<int8_t*>(row + RowScaleBytes(dtype)));
    std::memcpy(row, &scale, sizeof(scale));
  }
}

void AddScaledRow(float a, const std::byte* row, DType dtype, int64_t begin,
                  int64_t end, float* y) {
  const int64_t n = end - begin;
  switch (dtype) {
    case DType::kF32:
      return AddScaled(a, reinterpret_cast<const float*>(row) + begin, n, y);
    case DType::kBF16:
      return AddScaledBF16(a, reinterpret_cast<const BF16*>(row) + begin, n, y);
    case DType::kF16: {
      // binary16 has no type of its own here; its bits are all that is stored.
      const auto* x = reinterpret_cast<const uint16_t*>(row) + begin;
      for (int64_t i = 0; i < n; ++i) y[i] += a * F16ToF32(x[i]);
      return;
    }
    case DType::kInt8: {
      const CodedRow x = ReadCodedRow(row);
      return AddScaledCodes(a, x.scale, x.codes + begin, n, y);
    }
  }
}

bool IsFiniteRow(const std::byte* row, DType dtype, int64_t n) {
  const auto are_finite = [n](const auto* x, auto as_f32) {
    return std::all_of(x, x + n,
                       [&](auto v) { return std::isfinite(as_f32(v)); });
  };
  switch (dtype) {
    case DType::kF32:
      return AllFinite(reinterpret_cast<const float*>(row), n);
    case DType::kBF16:
      return are_finite(reinterpret_cast<const BF16*>(row),
                        [](BF16 v) { return ToF32(v); });
    case DType::kF16:
      return are_finite(reinterpret_cast<const uint16_t*>(row), F16ToF32);
    case DType::kInt8:
      return std::isfinite(ReadCodedRow(row).scale * kMostSteps);
  }
  return false;
}

}  // namespace expertmesh
