#pragma once

// Sums of byte products in plain C++; see quantized_body.h. The specification
// of the other bytes_*.h.

#include "services/linalg/isa/panel_layout.h"

namespace expertmesh {
namespace {

struct PortableBytes {
  static constexpr bool kTakesZero = false;
  static constexpr int kMaxRows = 4;
  static constexpr int kInt4Rows = 0;  // always unpacked

  static void Dot(const uint8_t* x, int64_t x_stride, int rows,
                  const int8_t* codes, int64_t k, int32_t* sums) {
    for (int r = 0; r < rows; ++r) {
      int32_t* row_sums = sums + r * kPanelWidth;
      for (int64_t n = 0; n < kPanelWidth; ++n) row_sums[n] = 0;
      for (int64_t i = 0; i < k; i += 4) {
        const uint8_t* four = x + r * x_stride + i;
        const int8_t* w = codes + i * kPanelWidth;
        for (int64_t n = 0; n < kPanelWidth; ++n) {
          row_sums[n] += four[0] * w[4 * n] + four[1] * w[4 * n + 1] +
                         four[2] * w[4 * n + 2] + four[3] * w[4 * n + 3];
        }
      }
    }
  }

  static void Unpack(const uint8_t* blocks, int64_t k, int8_t* codes) {
    for (int64_t i = 0; i < k; i += 8) {
      const uint8_t* block = blocks + i / 64 * kInt4BlockBytes;
      const uint8_t* packed = block + kInt4StepBytes + i % 64 * 32;
      const uint8_t* steps = block + i % 64 / kInt4Group * kPanelWidth;
      for (int64_t at = 0; at < 4 * kPanelWidth; ++at) {
        const int multiplier = steps[at / 4] & 15;
        const int zero = kInt4Zero - (steps[at / 4] >> 4);
        codes[i * kPanelWidth + at] =
            static_cast<int8_t>(((packed[at] & 15) - zero) * multiplier);
        codes[(i + 4) * kPanelWidth + at] =
            static_cast<int8_t>(((packed[at] >> 4) - zero) * multiplier);
      }
    }
  }
};

}  // namespace
}  // namespace expertmesh
