#pragma once

// How keys and values lie in memory.

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/core/dtype.h"

namespace expertmesh {

// Tokens per page.
inline constexpr int64_t kPageTokens = 16;

// kInt8: codes of 8 bits, one scale per position and KV head, for keys and
// values each. A position's bytes depend on its own key and value only.
enum class KvFormat : uint8_t { kF32, kBF16, kInt8 };

// "f32", "bf16", "int8".
absl::string_view KvFormatName(KvFormat format);

// The name of a format. Errors: INVALID_ARGUMENT naming the value.
absl::StatusOr<KvFormat> ParseKvFormat(absl::string_view name);

// The format of activations' own type. f16 is not among them: f32.
constexpr KvFormat KvFormatOf(DType activations) {
  return activations == DType::kBF16 ? KvFormat::kBF16 : KvFormat::kF32;
}

// What the scales of one int8 page take, in front of its codes.
inline constexpr int64_t kPageScaleBytes =
    kPageTokens * static_cast<int64_t>(sizeof(float));

// What one KV head's keys (or its values) of one page take.
constexpr int64_t KvPageBytes(int64_t head_dim, KvFormat format) {
  switch (format) {
    case KvFormat::kF32:
      return kPageTokens * head_dim * 4;
    case KvFormat::kBF16:
      return kPageTokens * head_dim * 2;
    case KvFormat::kInt8:
      return kPageScaleBytes + kPageTokens * head_dim;
  }
  return 0;
}

}  // namespace expertmesh
