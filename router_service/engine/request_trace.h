#pragma once

#include <string>

#include "services/trace/trace_context.h"

namespace expertmesh::router {

// A request's place in a trace.
struct RequestTrace {
  // What is done for the request is recorded, here and by expert services.
  bool is_sampled() const { return context.is_sampled; }

  TraceContext context;  // the request's own span, or its client's
  SpanId parent;         // of that span; zero: none
  // Spans of two phases, and what expert services get during each; only where
  // it is sampled.
  SpanId prefill;
  SpanId decode;
  std::string prefill_traceparent;
  std::string decode_traceparent;
};

}  // namespace expertmesh::router
