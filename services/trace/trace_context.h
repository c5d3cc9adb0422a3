#pragma once

// W3C Trace Context: which trace a piece of work belongs to, and the span that
// caused it.
// Source: https://www.w3.org/TR/trace-context/

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace expertmesh {

// A context travels in gRPC metadata under this name.
inline constexpr char kTraceparentKey[] = "traceparent";
// Characters of a context of version 00.
inline constexpr size_t kTraceparentChars = 55;

// Neither id of a valid context is all zeros.
struct TraceId {
  std::array<uint8_t, 16> bytes = {};

  static TraceId Random();
  // 32 lower-case hexadecimal digits.
  std::string Hex() const;
  bool operator==(const TraceId&) const = default;
};

struct SpanId {
  std::array<uint8_t, 8> bytes = {};

  static SpanId Random();
  // 16 lower-case hexadecimal digits.
  std::string Hex() const;
  bool is_valid() const { return *this != SpanId(); }
  bool operator==(const SpanId&) const = default;
};

struct TraceContext {
  TraceId trace_id;
  SpanId span_id;  // of who sends this: the parent of what is done for it
  bool is_sampled = false;

  // As version 00: "00-<trace id>-<span id>-<flags>".
  std::string ToTraceparent() const;
  bool operator==(const TraceContext&) const = default;
};

// Nothing for what is no valid context, which the standard has ignored: digits
// that are not lower-case hexadecimal, ids of zeros, version ff, a version 00
// that is longer or shorter. What later versions append is not read.
std::optional<TraceContext> ParseTraceparent(absl::string_view text);

}  // namespace expertmesh
