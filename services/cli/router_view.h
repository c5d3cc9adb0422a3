#pragma once

// What a router makes of expert services, for a launcher that changes them.

#include <functional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/cli/client.h"

namespace expertmesh {

// Calls block; they end with CANCELLED soon after waiting is to end. One
// thread.
class RouterView {
 public:
  // `address`: of the admin API, without TLS. `sleep` waits, and says true once
  // that is to end.
  RouterView(const std::string& address,
             std::function<bool(absl::Duration)> sleep);

  // Tells a service to take no new work, after the router has loaded elsewhere
  // what it alone holds; OK for a service that is not in use, or does not
  // connect within 10 s. Errors: FAILED_PRECONDITION where nobody has room for
  // that; DEADLINE_EXCEEDED after 10 min; others where the router does not
  // answer. After an error the router may still drain it: take it back.
  absl::Status Drain(const std::string& address);
  // Takes that back, as far as possible.
  void Undrain(const std::string& address);

  // Waits until services are in use. Errors: FAILED_PRECONDITION with the
  // router's reason where it refuses one; DEADLINE_EXCEEDED after 10 min.
  absl::Status AwaitReady(const std::vector<std::string>& addresses);
  // Waits until services are forgotten. Errors: DEADLINE_EXCEEDED after a
  // minute.
  absl::Status AwaitGone(const std::vector<std::string>& addresses);

 private:
  // One call of the admin API.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Ask(
      void (admin::v1::AdminService::StubInterface::async_interface::*method)(
          grpc::ClientContext*, const Request*, Response*,
          std::function<void(grpc::Status)>),
      const Request& request, absl::Duration timeout);
  absl::Status DrainEndpoint(const std::string& address, bool undo,
                             absl::Duration timeout);

  // Asks again and again for the endpoints of these addresses until `is_done`.
  // What the router answers badly, as it does while it restarts, is asked
  // again. Errors: DEADLINE_EXCEEDED saying that the router `does_not`.
  using Endpoints = std::vector<admin::v1::Endpoint>;
  absl::Status Await(
      const std::vector<std::string>& addresses, absl::Duration within,
      absl::string_view does_not,
      absl::FunctionRef<absl::StatusOr<bool>(const Endpoints&)> is_done);

  Client client_;
  const std::function<bool(absl::Duration)> sleep_;
};

}  // namespace expertmesh
