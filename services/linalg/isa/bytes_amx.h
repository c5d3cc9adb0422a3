#pragma once

// Sums of byte products in AMX tiles; see quantized_body.h. Few rows and int4
// blocks are left to VNNI.

#include "services/linalg/isa/bytes_vnni.h"
#include "services/linalg/isa/tiles_amx.h"

namespace expertmesh {
namespace {

struct AmxBytes : VnniBytes {
  static constexpr int kMaxRows = 2 * kTileHeight;
  // Fewer rows wait for memory either way, and tiles take setting up.
  static constexpr int kVnniRows = 4;

  static void Dot(const uint8_t* x, int64_t x_stride, int rows,
                  const int8_t* codes, int64_t k, int32_t* sums) {
    if (rows <= kVnniRows) {
      VnniBytes::Dot(x, x_stride, rows, codes, k, sums);
      return;
    }
    MultiplyTiles<BytesProduct>({.x = reinterpret_cast<const char*>(x),
                                 .x_stride = x_stride,
                                 .x_tail = nullptr,
                                 .panel = reinterpret_cast<const char*>(codes),
                                 .steps = k / kTileBytes,
                                 .sums = reinterpret_cast<char*>(sums),
                                 .sums_stride = kPanelRow},
                                rows);
  }
};

}  // namespace
}  // namespace expertmesh
