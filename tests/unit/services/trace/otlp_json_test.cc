#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "services/trace/span.h"

namespace expertmesh {
namespace {

TEST(OtlpJsonTest, IsWhatTheFormatSays) {
  const TraceContext parent = *ParseTraceparent(
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
  Span span;
  span.trace_id = parent.trace_id;
  span.span_id = {{0xab, 1, 2, 3, 4, 5, 6, 7}};
  span.parent = parent.span_id;
  span.name = "decode";
  span.kind = SpanKind::kServer;
  span.start = absl::FromUnixNanos(1'790'000'000'000'000'001);
  span.end = absl::FromUnixNanos(1'790'000'000'000'000'999);
  span.attributes = {{"n", int64_t{1} << 60},
                     {"x", 0.5},
                     {"b", true},
                     {"s", std::string("a\"b\n")}};
  span.links = {parent};
  span.status = absl::UnavailableError("gone");
  const std::string line = ToOtlpJson({{"service.name", std::string("r")}},
                                      "expertmesh", "1.2", {span});
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto expected = nlohmann::json::parse(R"({"resourceSpans":[{
    "resource":{"attributes":[
      {"key":"service.name","value":{"stringValue":"r"}}]},
    "scopeSpans":[{"scope":{"name":"expertmesh","version":"1.2"},"spans":[{
      "traceId":"4bf92f3577b34da6a3ce929d0e0e4736",
      "spanId":"ab01020304050607","parentSpanId":"00f067aa0ba902b7",
      "name":"decode","kind":2,
      "startTimeUnixNano":"1790000000000000001",
      "endTimeUnixNano":"1790000000000000999",
      "attributes":[
        {"key":"n","value":{"intValue":"1152921504606846976"}},
        {"key":"x","value":{"doubleValue":0.5}},
        {"key":"b","value":{"boolValue":true}},
        {"key":"s","value":{"stringValue":"a\"b\n"}}],
      "links":[{"traceId":"4bf92f3577b34da6a3ce929d0e0e4736",
                "spanId":"00f067aa0ba902b7"}],
      "status":{"code":2,"message":"gone"}}]}]}]})");
  EXPECT_EQ(nlohmann::json::parse(line), expected);
}

TEST(OtlpJsonTest, ARootHasNoParentAndOddBytesAreReplaced) {
  Span span;
  span.trace_id = TraceId::Random();
  span.span_id = SpanId::Random();
  span.name = "a\xff";
  const auto json = nlohmann::json::parse(ToOtlpJson({}, "s", "v", {span}));
  const auto& out = json["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
  EXPECT_FALSE(out.contains("parentSpanId"));
  EXPECT_FALSE(out.contains("links"));
  EXPECT_TRUE(out["status"].empty());
  EXPECT_EQ(out["name"], "a\xef\xbf\xbd");
}

}  // namespace
}  // namespace expertmesh
