#pragma once

// Runs a test once per instruction set that this machine has, and makes data.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "services/core/dtype.h"
#include "services/linalg/isa/kernels.h"
#include "services/linalg/tensor_view.h"

namespace expertmesh {

inline std::vector<Isa> AvailableIsas() {
  std::vector<Isa> isas;
  for (const Isa isa : kAllIsas) {
    if (KernelsFor(isa) != nullptr) isas.push_back(isa);
  }
  return isas;
}

// Uses one instruction set as long as it lives.
class ScopedIsa {
 public:
  explicit ScopedIsa(Isa isa) : previous_(ActiveIsa()) { SetActiveIsa(isa); }
  ~ScopedIsa() { SetActiveIsa(previous_); }

 private:
  const Isa previous_;
};

inline std::vector<float> RandomFloats(int64_t n, uint32_t seed,
                                       float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> values(n);
  for (float& value : values) value = uniform(generator);
  return values;
}

inline uint32_t BitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline std::vector<uint32_t> BitsOf(const std::vector<float>& values) {
  std::vector<uint32_t> bits(values.size());
  std::memcpy(bits.data(), values.data(), values.size() * sizeof(float));
  return bits;
}

// Binary16 nearest zero; any valid pattern does for a test.
inline uint16_t TruncateToF16(float x) {
  const uint32_t bits = BitsOf(x);
  const int exponent = static_cast<int>((bits >> 23) & 0xff) - 127 + 15;
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (exponent <= 0) return sign;
  return static_cast<uint16_t>(sign | exponent << 10 | ((bits >> 13) & 0x3ff));
}

// Values as `dtype` in memory, and what they are after that rounding.
struct TypedValues {
  TypedValues(const std::vector<float>& values, DType dtype)
      : dtype(dtype), bytes(values.size() * DTypeBytes(dtype)), f32(values) {
    for (size_t i = 0; i < values.size(); ++i) {
      uint16_t half = 0;
      if (dtype == DType::kF32) {
        std::memcpy(bytes.data() + i * 4, &values[i], 4);
        continue;
      }
      if (dtype == DType::kBF16) {
        half = ToBF16(values[i]).bits;
        f32[i] = ToF32(BF16{half});
      } else {
        half = TruncateToF16(values[i]);
        f32[i] = F16ToF32(half);
      }
      std::memcpy(bytes.data() + i * 2, &half, 2);
    }
  }

  TensorView View(int64_t rows, int64_t columns) const {
    return {bytes.data(), dtype, {rows, columns}};
  }

  DType dtype;
  std::vector<std::byte> bytes;
  std::vector<float> f32;
};

// Test parameter names.
inline std::string IsaTestName(const ::testing::TestParamInfo<Isa>& info) {
  return IsaNameOf(info.param);
}

}  // namespace expertmesh
