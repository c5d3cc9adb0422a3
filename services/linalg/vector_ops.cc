#include "services/linalg/vector_ops.h"

#include <bit>

#include "services/linalg/isa/kernels.h"

namespace expertmesh {
namespace {

// The kernels know bf16 by its bits. An empty span may be null.
static_assert(sizeof(BF16) == sizeof(uint16_t));
uint16_t* Bits(BF16* x) { return reinterpret_cast<uint16_t*>(x); }
const uint16_t* Bits(const BF16* x) {
  return reinterpret_cast<const uint16_t*>(x);
}

}  // namespace

void RmsNorm(const float* x, const float* weight, float eps, int64_t n,
             float* out) {
  ActiveKernels().rms_norm(x, weight, eps, n, out);
}

void RmsNorm(const float* x, const float* weight, float eps, int64_t n,
             BF16* out) {
  ActiveKernels().rms_norm_bf16(x, weight, eps, n, Bits(out));
}

void ConvertToBF16(const float* x, int64_t n, BF16* out) {
  ActiveKernels().convert_to_bf16(x, n, Bits(out));
}

void ConvertToF32(const BF16* x, int64_t n, float* out) {
  ActiveKernels().convert_to_f32(Bits(x), n, out);
}

float QuantizeRow(const float* x, int64_t n, uint8_t* codes) {
  return ActiveKernels().quantize_row(x, n, codes);
}

float QuantizeRow(const BF16* x, int64_t n, uint8_t* codes) {
  return ActiveKernels().quantize_row_bf16(Bits(x), n, codes);
}

float QuantizeRow(const float* x, int64_t n, int8_t* codes) {
  return ActiveKernels().quantize_row_signed(x, n, codes);
}

void DequantizeRow(float scale, const int8_t* codes, int64_t n, float* out) {
  ActiveKernels().dequantize_row(scale, codes, n, out);
}

void DequantizeRow(float scale, const int8_t* codes, int64_t n, BF16* out) {
  ActiveKernels().dequantize_row_bf16(scale, codes, n, Bits(out));
}

void Add(const float* x, int64_t n, float* y) { ActiveKernels().add(x, n, y); }

void AddScaled(float a, const float* x, int64_t n, float* y) {
  ActiveKernels().add_scaled(a, x, n, y);
}

void AddScaledBF16(float a, const BF16* x, int64_t n, float* y) {
  ActiveKernels().add_scaled_bf16(a, Bits(x), n, y);
}

void AddScaledCodes(float a, float scale, const int8_t* codes, int64_t n,
                    float* y) {
  ActiveKernels().add_scaled_codes(a, scale, codes, n, y);
}

void SiluMul(const float* gate, const float* up, int64_t n, float* out) {
  ActiveKernels().silu_mul(gate, up, n, out);
}

void SiluMul(const float* gate, const float* up, int64_t n, BF16* out) {
  ActiveKernels().silu_mul_bf16(gate, up, n, Bits(out));
}

void Exp(const float* x, int64_t n, float* out) {
  ActiveKernels().exp(x, n, out);
}

void Softmax(float* x, int64_t n) { ActiveKernels().softmax(x, n); }

bool AllFinite(const float* x, int64_t n) {
  // Without a branch, so that the compiler makes vectors of it.
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t any = 0;
  for (int64_t i = 0; i < n; ++i) {
    any |= (std::bit_cast<uint32_t>(x[i]) & kExponent) == kExponent;
  }
  return any == 0;
}

float Dot(const float* x, const float* y, int64_t n) {
  return ActiveKernels().dot(x, y, n);
}

}  // namespace expertmesh
