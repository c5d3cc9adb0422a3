#pragma once

// Which requests are traced, and their spans.

#include <cstdint>
#include <optional>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router_service/api/api_metrics.h"
#include "router_service/engine/sequence.h"
#include "services/trace/trace_file.h"

namespace expertmesh::router {

// The traceparent of a call's metadata; empty: none, or more than one, which is
// none.
std::string TraceparentOf(const grpc::CallbackServerContext& context);

// A request that brings a valid context goes on with it, and expert services
// are given it if it is sampled, whether spans are written here or not. With a
// file, requests without one get a trace of their own, and `sample_ratio` of
// all traces, by their ids, are sampled whatever their contexts say. Spans of a
// sampled request: its call, and within it `queue`, `prefill` and `decode`.
// Thread-safe.
class RequestTracer {
 public:
  struct Options {
    TraceFile* file = nullptr;  // outlives this; null: no spans are written
    double sample_ratio = 0;
    std::string model;
  };
  explicit RequestTracer(const Options& options) : options_(options) {}

  // The trace of a call that brought this context; nothing: it has none.
  std::optional<RequestTrace> Begin(absl::string_view traceparent) const;

  // What a call was.
  struct Call {
    Method method;
    absl::Time arrival;
    absl::string_view request_id;
  };
  // A call that the engine never ran has ended.
  void RecordRefused(const RequestTrace& trace, const Call& call,
                     const absl::Status& status) const;
  // The engine is done with a call, at `now` of its clock.
  void RecordFinished(const RequestTrace& trace, const Call& call,
                      const Sequence& sequence, FinishReason reason,
                      const absl::Status& status, absl::Duration now) const;

 private:
  bool IsChosen(const TraceId& id) const;
  bool Records(const RequestTrace& trace) const {
    return options_.file != nullptr && trace.is_sampled();
  }
  Span CallSpan(const RequestTrace& trace, const Call& call,
                const absl::Status& status) const;

  const Options options_;
};

}  // namespace expertmesh::router
