#pragma once

// Parts of responses, and log lines, that several calls have alike.

#include "expertmesh/v1/generation.pb.h"
#include "router_service/api/api_metrics.h"
#include "router_service/engine/sequence.h"

namespace expertmesh::router {

v1::RoutingAccount ToProto(const RoutingAccount& account);
v1::TokenLogprob ToProto(const TokenLogprob& logprob);
v1::FinishReason ToProto(FinishReason reason);
v1::Timings TimingsOf(const Sequence& sequence, absl::Duration now);

// One line for a request that the engine never ran, of which a hundred a second
// are written at most. `request_id` is the client's or ours; empty where there
// is none; so may `trace_id` be. Messages name positions and sizes, never text
// or tokens.
void LogRefused(Method method, absl::string_view request_id,
                const absl::Status& status, absl::string_view trace_id = "");

// One line for a finished request: never its prompt or tokens. At most a
// hundred a second each of those that failed and of the others.
void LogFinished(Method method, const Sequence& sequence,
                 const absl::Status& status, absl::Duration now,
                 absl::string_view trace_id = "");

}  // namespace expertmesh::router
