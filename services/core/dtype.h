#pragma once

// Element types of tensors and of rows of activations, and exact conversions
// between the float types.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

// kInt8 is of rows between services only: a scale in front of a row's codes
// (services/linalg/activation_row.h). No tensor is of it.
enum class DType : uint8_t { kF32, kBF16, kF16, kInt8 };

// Of one element.
constexpr size_t DTypeBytes(DType dtype) {
  if (dtype == DType::kInt8) return 1;
  return dtype == DType::kF32 ? 4 : 2;
}

// In front of each row.
constexpr size_t RowScaleBytes(DType dtype) {
  return dtype == DType::kInt8 ? sizeof(float) : 0;
}

// Of a row of `n` elements.
constexpr size_t RowBytes(DType dtype, size_t n) {
  return RowScaleBytes(dtype) + n * DTypeBytes(dtype);
}

// "f32", "bf16", "f16", "int8".
absl::string_view DTypeName(DType dtype);

// Accepts the names of types of tensors and the spellings of safetensors
// ("F32", "BF16", "F16") and config.json ("float32", "bfloat16", "float16").
// Errors: INVALID_ARGUMENT naming the value.
absl::StatusOr<DType> ParseDType(absl::string_view name);

// bfloat16: the upper half of an IEEE binary32.
struct BF16 {
  uint16_t bits;
};

inline float ToF32(BF16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN (quiet).
inline BF16 ToBF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return BF16{static_cast<uint16_t>((bits >> 16) | 0x0040u)};
  }
  const uint32_t rounding = 0x7fffu + ((bits >> 16) & 1u);
  return BF16{static_cast<uint16_t>((bits + rounding) >> 16)};
}

// IEEE binary16 to binary32; every binary16 is exact in binary32.
float F16ToF32(uint16_t bits);

}  // namespace expertmesh
