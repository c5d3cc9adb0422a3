#pragma once

// Until when a client waits for its call.

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace expertmesh::router {

struct CallDeadline {
  absl::Time arrival;
  absl::Time deadline;  // far away where the client set none

  static CallDeadline Of(const grpc::CallbackServerContext& context);
};

// Why a call whose client is gone at `now` ends: its deadline, or its
// cancelling. A client whose own clock runs out first cancels a little before
// the deadline, which the server counts from the call's arrival: what comes
// within 20 ms of it, or within 1% of the time given, is the deadline's doing.
absl::Status ClientGone(const CallDeadline& call, absl::Time now);

}  // namespace expertmesh::router
