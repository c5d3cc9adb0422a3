#include "services/cli/router_view.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

using Admin = admin::v1::AdminService::Stub;

constexpr double kCallSeconds = 10;
constexpr absl::Duration kPollInterval = absl::Milliseconds(50);
// Its last batches are answered long before.
constexpr absl::Duration kGoneWithin = absl::Minutes(1);

}  // namespace

RouterView::RouterView(const std::string& address,
                       std::function<bool(absl::Duration)> sleep)
    : client_({.address = address, .timeout_seconds = kCallSeconds}),
      sleep_(std::move(sleep)) {}

absl::Status RouterView::Drain(const std::string& address) {
  ASSIGN_OR_RETURN(
      const auto listed,
      client_.Ask(&Admin::ListEndpoints, admin::v1::ListEndpointsRequest()));
  const bool is_ready = std::any_of(
      listed.endpoints().begin(), listed.endpoints().end(),
      [&](const admin::v1::Endpoint& endpoint) {
        return endpoint.address() == address && endpoint.state() == "ready";
      });
  if (!is_ready) return absl::OkStatus();
  admin::v1::DrainEndpointRequest request;
  request.set_address(address);
  return client_.Ask(&Admin::DrainEndpoint, request).status();
}

void RouterView::Undrain(const std::string& address) {
  admin::v1::DrainEndpointRequest request;
  request.set_address(address);
  request.set_undo(true);
  client_.Ask(&Admin::DrainEndpoint, request).IgnoreError();
}

absl::Status RouterView::Await(
    const std::vector<std::string>& addresses,
    absl::FunctionRef<absl::StatusOr<bool>(const Endpoints&)> is_done) {
  while (true) {
    const auto listed =
        client_.Ask(&Admin::ListEndpoints, admin::v1::ListEndpointsRequest());
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
    if (sleep_(kPollInterval)) {
      return absl::CancelledError("the launcher is stopping");
    }
  }
}

absl::Status RouterView::AwaitReady(const std::vector<std::string>& addresses) {
  return Await(
      addresses, [&](const Endpoints& endpoints) -> absl::StatusOr<bool> {
        size_t ready = 0;
        for (const admin::v1::Endpoint& endpoint : endpoints) {
          if (endpoint.state() == "ready") ++ready;
          if (endpoint.state() != "refused") continue;
          return absl::FailedPreconditionError(
              absl::StrCat("the router refuses the service at ",
                           endpoint.address(), ": ", endpoint.reason()));
        }
        return ready == addresses.size();
      });
}

absl::Status RouterView::AwaitGone(const std::vector<std::string>& addresses) {
  const absl::Time deadline = absl::Now() + kGoneWithin;
  return Await(
      addresses, [&](const Endpoints& endpoints) -> absl::StatusOr<bool> {
        if (!endpoints.empty() && absl::Now() > deadline) {
          return absl::DeadlineExceededError(absl::StrCat(
              "the router still has work for ", endpoints.front().address()));
        }
        return endpoints.empty();
      });
}

}  // namespace expertmesh
