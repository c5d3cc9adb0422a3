#include "router_service/api/call_deadline.h"

#include <algorithm>

#include "absl/time/clock.h"

namespace expertmesh::router {

CallDeadline CallDeadline::Of(const grpc::CallbackServerContext& context) {
  return {absl::Now(), absl::FromChrono(context.deadline())};
}

absl::Status ClientGone(const CallDeadline& call, absl::Time now) {
  const absl::Duration slack =
      std::max(absl::Milliseconds(20), 0.01 * (call.deadline - call.arrival));
  if (now >= call.deadline - slack) {
    return absl::DeadlineExceededError("the request's deadline has passed");
  }
  return absl::CancelledError("cancelled by the client");
}

}  // namespace expertmesh::router
