#pragma once

// A finished piece of a trace, as OpenTelemetry has it.

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/trace/trace_context.h"

namespace expertmesh {

// Numbers are those of OTLP.
enum class SpanKind { kInternal = 1, kServer = 2, kClient = 3 };

using AttributeValue = std::variant<std::string, int64_t, double, bool>;
using Attributes = std::vector<std::pair<std::string, AttributeValue>>;

struct Span {
  TraceId trace_id;
  SpanId span_id;
  SpanId parent;  // zero: none
  std::string name;
  SpanKind kind = SpanKind::kInternal;
  absl::Time start;
  absl::Time end;
  Attributes attributes;
  std::vector<TraceContext> links;  // spans of other traces that it worked for
  absl::Status status;
};

// One line of the OTLP file format, without its end: an
// ExportTraceServiceRequest as OTLP/JSON has it, with ids in hexadecimal,
// 64-bit numbers as strings and enums as numbers. Bytes that are not UTF-8
// become U+FFFD.
//   resource  attributes of the process
//   scope     who made the spans, and its version
std::string ToOtlpJson(const Attributes& resource, absl::string_view scope,
                       absl::string_view version,
                       const std::vector<Span>& spans);

}  // namespace expertmesh
