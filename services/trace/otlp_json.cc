// Source: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding and
// https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "services/trace/span.h"

namespace expertmesh {
namespace {

using Json = nlohmann::ordered_json;

// Of Status.StatusCode. OK is for applications to set; who succeeded has none.
constexpr int kStatusError = 2;

Json ToJson(const AttributeValue& value) {
  struct Visitor {
    Json operator()(const std::string& text) const {
      return {{"stringValue", text}};
    }
    Json operator()(int64_t number) const {
      return {{"intValue", absl::StrCat(number)}};
    }
    Json operator()(double number) const { return {{"doubleValue", number}}; }
    Json operator()(bool flag) const { return {{"boolValue", flag}}; }
  };
  return std::visit(Visitor(), value);
}

Json ToJson(const Attributes& attributes) {
  Json out = Json::array();
  for (const auto& [key, value] : attributes) {
    out.push_back({{"key", key}, {"value", ToJson(value)}});
  }
  return out;
}

std::string UnixNanos(absl::Time time) {
  return absl::StrCat(absl::ToUnixNanos(time));
}

Json ToJson(const Span& span) {
  Json out = {{"traceId", span.trace_id.Hex()}, {"spanId", span.span_id.Hex()}};
  if (span.parent.is_valid()) out["parentSpanId"] = span.parent.Hex();
  out["name"] = span.name;
  out["kind"] = static_cast<int>(span.kind);
  out["startTimeUnixNano"] = UnixNanos(span.start);
  out["endTimeUnixNano"] = UnixNanos(span.end);
  out["attributes"] = ToJson(span.attributes);
  if (!span.links.empty()) {
    Json& links = out["links"] = Json::array();
    for (const TraceContext& link : span.links) {
      links.push_back(
          {{"traceId", link.trace_id.Hex()}, {"spanId", link.span_id.Hex()}});
    }
  }
  out["status"] = Json::object();
  if (!span.status.ok()) {
    out["status"] = {{"code", kStatusError},
                     {"message", std::string(span.status.message())}};
  }
  return out;
}

}  // namespace

std::string ToOtlpJson(const Attributes& resource, absl::string_view scope,
                       absl::string_view version,
                       const std::vector<Span>& spans) {
  Json list = Json::array();
  for (const Span& span : spans) list.push_back(ToJson(span));
  Json scope_spans = {
      {"scope",
       {{"name", std::string(scope)}, {"version", std::string(version)}}},
      {"spans", std::move(list)}};
  Json resource_spans = {{"resource", {{"attributes", ToJson(resource)}}},
                         {"scopeSpans", Json::array({std::move(scope_spans)})}};
  const Json request = {
      {"resourceSpans", Json::array({std::move(resource_spans)})}};
  return request.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace expertmesh
