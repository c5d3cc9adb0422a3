#pragma once

// How a weight matrix lies in memory once packed.

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/core/dtype.h"

namespace expertmesh {

// kInt8: codes of 8 bits, one scale per output. kInt4: codes of 4 bits, each
// group of 32 along k with a multiplier of its own, one scale per output.
enum class WeightFormat : uint8_t { kF32, kBF16, kF16, kInt8, kInt4 };

constexpr bool IsQuantized(WeightFormat format) {
  return format == WeightFormat::kInt8 || format == WeightFormat::kInt4;
}

// The format that keeps every bit of a tensor.
constexpr WeightFormat FormatOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return WeightFormat::kF32;
    case DType::kBF16:
      return WeightFormat::kBF16;
    case DType::kF16:
      return WeightFormat::kF16;
    case DType::kInt8:
      break;  // no tensor is
  }
  return WeightFormat::kF32;
}

// "f32", "bf16", "f16", "int8", "int4".
absl::string_view WeightFormatName(WeightFormat format);

// The name of a format. Errors: INVALID_ARGUMENT naming the value.
absl::StatusOr<WeightFormat> ParseWeightFormat(absl::string_view name);

// What a [n, k] matrix takes once packed, padding included.
int64_t PackedBytes(int64_t n, int64_t k, WeightFormat format);

}  // namespace expertmesh
