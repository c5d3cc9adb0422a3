#pragma once

// Rows of activations as they travel between services: [n] of f32 or bf16, or
// in codes of 8 bits, which are a scale (f32) and behind it [n] int8_t of -127
// to 127 (QuantizeRow). An element in codes is scale · code; the scale is NaN
// where a value was not finite, and then they all are.
//
// Rows lie RowBytes apart, so those in codes where no float needs to.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "services/core/dtype.h"

namespace expertmesh {

// A row of kInt8.
struct CodedRow {
  float scale = 0;
  const int8_t* codes = nullptr;
};

inline CodedRow ReadCodedRow(const std::byte* row) {
  CodedRow coded;
  std::memcpy(&coded.scale, row, sizeof(coded.scale));
  coded.codes =
      reinterpret_cast<const int8_t*>(row + RowScaleBytes(DType::kInt8));
  return coded;
}

// Rounds x [n] to a row of `dtype`: f32, bf16 or int8.
void StoreRow(const float* x, int64_t n, DType dtype, std::byte* row);

// y[i] += a · x[begin + i], product and sum rounded apart, for columns
// [begin, end) of a row x of any type.
void AddScaledRow(float a, const std::byte* row, DType dtype, int64_t begin,
                  int64_t end, float* y);

// Whether no element of a row of any type is infinite or NaN.
bool IsFiniteRow(const std::byte* row, DType dtype, int64_t n);

}  // namespace expertmesh
