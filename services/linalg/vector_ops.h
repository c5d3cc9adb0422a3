#pragma once

// Operations on spans of floats. One thread, no allocation; `n` elements, no
// alignment asked. Every instruction set gives the same bits: elements are
// computed alone, multiplications and additions rounded apart, and sums run in
// an order fixed by n (16 partial sums, element i in number i % 16, added in a
// fixed tree).

#include <cstdint>

#include "services/core/dtype.h"

namespace expertmesh {

// out = x / sqrt(mean(x^2) + eps) * weight. `out` may be x.
void RmsNorm(const float* x, const float* weight, float eps, int64_t n,
             float* out);
void RmsNorm(const float* x, const float* weight, float eps, int64_t n,
             BF16* out);

// Rounds as ToBF16.
void ConvertToBF16(const float* x, int64_t n, BF16* out);
void ConvertToF32(const BF16* x, int64_t n, float* out);

// Rounds a row to bytes of its own scale, as quantized weights take it:
//   codes [n and padding to a multiple of 64]: round(x / scale) + 128, 1 to 255
// Returns the scale, max |x| / 127: zero for a row of (nearly) zeros, NaN for
// one with a value that is not finite.
float QuantizeRow(const float* x, int64_t n, uint8_t* codes);
float QuantizeRow(const BF16* x, int64_t n, uint8_t* codes);
// The same numbers without 128 added, and without padding: -127 to 127.
float QuantizeRow(const float* x, int64_t n, int8_t* codes);

// out = scale · code, which for BF16 is then rounded.
void DequantizeRow(float scale, const int8_t* codes, int64_t n, float* out);
void DequantizeRow(float scale, const int8_t* codes, int64_t n, BF16* out);

// y += x
void Add(const float* x, int64_t n, float* y);

// y += a x
void AddScaled(float a, const float* x, int64_t n, float* y);
void AddScaledBF16(float a, const BF16* x, int64_t n, float* y);
// y += a (scale · code)
void AddScaledCodes(float a, float scale, const int8_t* codes, int64_t n,
                    float* y);

// out = silu(gate) * up, silu(g) = g / (1 + e^-g). `out` may be gate or up.
void SiluMul(const float* gate, const float* up, int64_t n, float* out);
void SiluMul(const float* gate, const float* up, int64_t n, BF16* out);

// out = e^x within 2 ulp; underflow is gradual, overflow infinite, NaN stays.
// `out` may be x.
void Exp(const float* x, int64_t n, float* out);

// x = e^(x - max x) / sum of the same.
void Softmax(float* x, int64_t n);

// Whether no element is infinite or NaN.
bool AllFinite(const float* x, int64_t n);

// Sum of x y.
float Dot(const float* x, const float* y, int64_t n);

}  // namespace expertmesh
