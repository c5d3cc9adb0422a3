#pragma once

// Parts of responses that several calls fill alike.

#include "expertmesh/v1/generation.pb.h"
#include "router_service/engine/sequence.h"

namespace expertmesh::router {

v1::RoutingAccount ToProto(const RoutingAccount& account);
v1::TokenLogprob ToProto(const TokenLogprob& logprob);
v1::FinishReason ToProto(FinishReason reason);
v1::Timings TimingsOf(const Sequence& sequence, absl::Duration now);

// Why a call whose client is gone ends: its deadline, or its cancelling.
absl::Status ClientGone(absl::Time deadline);

// One line for one refused request; at most ten a second.
void LogRefused(absl::string_view method, const absl::Status& status);

// One line for one finished request: never its prompt or tokens. At most a
// hundred a second.
void LogFinished(absl::string_view method, const Sequence& sequence,
                 const absl::Status& status, absl::Duration now);

}  // namespace expertmesh::router
