#include "router_service/api/request_tracer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace expertmesh::router {
namespace {

std::string OutcomeName(FinishReason reason, const absl::Status& status) {
  if (!status.ok()) {
    return absl::AsciiStrToLower(absl::StatusCodeToString(status.code()));
  }
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kStopped:
      return "stop_string";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
    case FinishReason::kError:
      break;
  }
  return "ok";
}

absl::string_view RpcName(Method method) {
  return method == Method::kScore ? "Score" : "Generate";
}

}  // namespace

std::string TraceparentOf(const grpc::CallbackServerContext& context) {
  const auto [first, last] =
      context.client_metadata().equal_range(kTraceparentKey);
  if (first == last || std::next(first) != last) return "";
  return std::string(first->second.data(), first->second.size());
}

bool RequestTracer::IsChosen(const TraceId& id) const {
  // As TraceIdRatioBased of OpenTelemetry: all who see the trace choose alike.
  uint64_t low = 0;
  for (size_t i = 8; i < 16; ++i) low = low << 8 | id.bytes[i];
  return std::ldexp(static_cast<double>(low), -64) < options_.sample_ratio;
}

std::optional<RequestTrace> RequestTracer::Begin(
    absl::string_view traceparent) const {
  const auto given =
      traceparent.empty() ? std::nullopt : ParseTraceparent(traceparent);
  if (!given && options_.file == nullptr) return std::nullopt;
  RequestTrace trace;
  if (given) trace.context = *given;
  if (options_.file != nullptr) {
    if (!given) trace.context.trace_id = TraceId::Random();
    trace.context.is_sampled |= IsChosen(trace.context.trace_id);
    trace.parent = trace.context.span_id;
    trace.context.span_id = SpanId::Random();
  }
  if (!trace.is_sampled()) return trace;
  TraceContext phase = trace.context;
  if (options_.file != nullptr) phase.span_id = SpanId::Random();
  trace.prefill = phase.span_id;
  trace.prefill_traceparent = phase.ToTraceparent();
  if (options_.file != nullptr) phase.span_id = SpanId::Random();
  trace.decode = phase.span_id;
  trace.decode_traceparent = phase.ToTraceparent();
  return trace;
}

Span RequestTracer::CallSpan(const RequestTrace& trace, const Call& call,
                             const absl::Status& status) const {
  Span span;
  span.trace_id = trace.context.trace_id;
  span.span_id = trace.context.span_id;
  span.parent = trace.parent;
  span.name =
      absl::StrCat("expertmesh.v1.GenerationService/", RpcName(call.method));
  span.kind = SpanKind::kServer;
  span.start = call.arrival;
  span.attributes = {
      {"rpc.system", std::string("grpc")},
      {"rpc.service", std::string("expertmesh.v1.GenerationService")},
      {"rpc.method", std::string(RpcName(call.method))},
      {"rpc.grpc.status_code", static_cast<int64_t>(status.code())},
      {"expertmesh.model", options_.model},
      {"expertmesh.request_id", std::string(call.request_id)}};
  span.status = status;
  return span;
}

void RequestTracer::RecordRefused(const RequestTrace& trace, const Call& call,
                                  const absl::Status& status) const {
  if (!Records(trace)) return;
  Span span = CallSpan(trace, call, status);
  span.end = std::max(span.start, absl::Now());
  span.attributes.emplace_back("expertmesh.outcome", std::string("refused"));
  options_.file->Add(std::move(span));
}

void RequestTracer::RecordFinished(const RequestTrace& trace, const Call& call,
                                   const Sequence& sequence,
                                   FinishReason reason,
                                   const absl::Status& status,
                                   absl::Duration now) const {
  if (!Records(trace)) return;
  Span span = CallSpan(trace, call, status);
  // Spans of one request nest whatever the system's clock does meanwhile.
  span.end = std::max(span.start, absl::Now());
  const auto time_of = [&](absl::Duration engine_time) {
    return std::max(span.start, span.end - (now - engine_time));
  };
  const auto add_phase = [&](const char* name, SpanId id, absl::Duration start,
                             absl::Duration end, Attributes attributes) {
    Span phase;
    phase.trace_id = trace.context.trace_id;
    phase.span_id = id;
    phase.parent = trace.context.span_id;
    phase.name = name;
    phase.start = time_of(start);
    phase.end = time_of(end);
    phase.attributes = std::move(attributes);
    options_.file->Add(std::move(phase));
  };
  const auto or_now = [now](absl::Duration time) {
    return time == absl::ZeroDuration() ? now : time;
  };
  const absl::Duration began = or_now(sequence.first_step);
  const absl::Duration decoded = or_now(sequence.first_token);
  add_phase("queue", SpanId::Random(), sequence.arrival, began,
            {{"expertmesh.priority", int64_t{sequence.request.priority}}});
  if (sequence.first_step != absl::ZeroDuration()) {
    add_phase("prefill", trace.prefill, began, decoded,
              {{"expertmesh.prompt_tokens", sequence.prompt_size()},
               {"expertmesh.cached_tokens", sequence.num_cached}});
  }
  if (sequence.first_token != absl::ZeroDuration()) {
    add_phase("decode", trace.decode, decoded, now,
              {{"expertmesh.generated_tokens", sequence.num_generated()}});
  }
  span.attributes.insert(
      span.attributes.end(),
      {{"expertmesh.prompt_tokens", sequence.prompt_size()},
       {"expertmesh.cached_tokens", sequence.num_cached},
       {"expertmesh.generated_tokens", sequence.num_generated()},
       {"expertmesh.steps", sequence.num_steps},
       {"expertmesh.outcome", OutcomeName(reason, status)}});
  options_.file->Add(std::move(span));
}

}  // namespace expertmesh::router
