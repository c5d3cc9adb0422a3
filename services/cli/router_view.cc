#include "services/cli/router_view.h"

#include <algorithm>
#include <future>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/cli/stopping.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

using AsyncAdmin = admin::v1::AdminService::StubInterface::async_interface;

constexpr absl::Duration kAnswersWithin = absl::Seconds(10);
// What a service alone holds is loaded elsewhere, perhaps after other changes.
constexpr absl::Duration kDrainsWithin = absl::Minutes(10);
constexpr absl::Duration kConnectsWithin = absl::Seconds(10);
constexpr absl::Duration kUsedWithin = absl::Minutes(10);
// Its last batches are answered long before.
constexpr absl::Duration kGoneWithin = absl::Minutes(1);
constexpr absl::Duration kPollInterval = absl::Milliseconds(50);

// Without TLS there is no file that could be no good.
Client ClientOf(const std::string& admin_address) {
  ServerFlags flags;
  flags.admin_address = admin_address;
  return *Client::Create(flags);
}

}  // namespace

RouterView::RouterView(const std::string& address,
                       std::function<bool(absl::Duration)> sleep)
    : client_(ClientOf(address)), sleep_(std::move(sleep)) {}

template <typename Request, typename Response>
absl::StatusOr<Response> RouterView::Ask(
    void (AsyncAdmin::*method)(grpc::ClientContext*, const Request*, Response*,
                               std::function<void(grpc::Status)>),
    const Request& request, absl::Duration timeout) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  Response response;
  std::promise<grpc::Status> promise;
  std::future<grpc::Status> answer = promise.get_future();
  (client_.admin().async()->*method)(
      &context, &request, &response,
      [&](const grpc::Status& status) { promise.set_value(status); });
  while (answer.wait_for(absl::ToChronoMilliseconds(kPollInterval)) !=
         std::future_status::ready) {
    if (sleep_(absl::ZeroDuration())) context.TryCancel();
  }
  const grpc::Status status = answer.get();
  if (status.ok()) return response;
  if (sleep_(absl::ZeroDuration())) return Stopping();
  if (absl::StartsWith(status.error_message(), "failed to connect")) {
    return absl::UnavailableError(
        "the router cannot be reached; it may be restarting, try again");
  }
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return absl::DeadlineExceededError(absl::StrCat(
        "the router has not answered within ", absl::FormatDuration(timeout)));
  }
  return client_.AdminResult(status);
}

absl::Status RouterView::Drain(const std::string& address) {
  std::string state;  // "" until the router has answered
  const absl::Status settled =
      Await({address}, kConnectsWithin, "connect to the service",
            [&](const Endpoints& endpoints) -> absl::StatusOr<bool> {
              state = endpoints.empty() ? "absent" : endpoints.front().state();
              return state != "connecting";
            });
  if (absl::IsCancelled(settled)) return settled;
  // One that still connects has no work.
  if (!settled.ok() && state != "connecting") return settled;
  if (state != "ready") return absl::OkStatus();
  return DrainEndpoint(address, /*undo=*/false, kDrainsWithin);
}

void RouterView::Undrain(const std::string& address) {
  DrainEndpoint(address, /*undo=*/true, kAnswersWithin).IgnoreError();
}

absl::Status RouterView::DrainEndpoint(const std::string& address, bool undo,
                                       absl::Duration timeout) {
  admin::v1::DrainEndpointRequest request;
  request.set_address(address);
  request.set_undo(undo);
  return Ask<admin::v1::DrainEndpointRequest, admin::v1::DrainEndpointResponse>(
             &AsyncAdmin::DrainEndpoint, request, timeout)
      .status();
}

absl::Status RouterView::Await(
    const std::vector<std::string>& addresses, absl::Duration within,
    absl::string_view does_not,
    absl::FunctionRef<absl::StatusOr<bool>(const Endpoints&)> is_done) {
  const absl::Time deadline = absl::Now() + within;
  while (true) {
    const auto listed =
        Ask<admin::v1::ListEndpointsRequest, admin::v1::ListEndpointsResponse>(
            &AsyncAdmin::ListEndpoints, admin::v1::ListEndpointsRequest(),
            kAnswersWithin);
    if (listed.ok()) {
      Endpoints endpoints;
      for (const admin::v1::Endpoint& endpoint : listed->endpoints()) {
        if (std::find(addresses.begin(), addresses.end(), endpoint.address()) !=
            addresses.end()) {
          endpoints.push_back(endpoint);
        }
      }
      ASSIGN_OR_RETURN(const bool done, is_done(endpoints));
      if (done) return absl::OkStatus();
    }
    if (sleep_(kPollInterval)) return Stopping();
    if (absl::Now() < deadline) continue;
    if (!listed.ok()) return listed.status();
    return absl::DeadlineExceededError(
        absl::StrCat("the router did not ", does_not, " within ",
                     absl::FormatDuration(within)));
  }
}

absl::Status RouterView::AwaitReady(const std::vector<std::string>& addresses) {
  return Await(addresses, kUsedWithin, "use every new service",
               [&](const Endpoints& endpoints) -> absl::StatusOr<bool> {
                 size_t ready = 0;
                 for (const admin::v1::Endpoint& endpoint : endpoints) {
                   if (endpoint.state() == "ready") ++ready;
                   if (endpoint.state() != "refused") continue;
                   return absl::FailedPreconditionError(absl::StrCat(
                       "the router refuses the service at ", endpoint.address(),
                       ": ", endpoint.reason()));
                 }
                 return ready == addresses.size();
               });
}

absl::Status RouterView::AwaitGone(const std::vector<std::string>& addresses) {
  return Await(addresses, kGoneWithin, "let go of every service",
               [](const Endpoints& endpoints) -> absl::StatusOr<bool> {
                 return endpoints.empty();
               });
}

}  // namespace expertmesh
