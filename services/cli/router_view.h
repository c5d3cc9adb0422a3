#pragma once

// What a router makes of expert services, for a launcher that changes them.

#include <functional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/cli/client.h"

namespace expertmesh {

// Calls block. One thread.
class RouterView {
 public:
  // `sleep` waits, and says true once that is to end.
  RouterView(const std::string& address,
             std::function<bool(absl::Duration)> sleep);

  // Tells a service to take no new work. Errors: FAILED_PRECONDITION where it
  // holds an expert that no other ready service does; others where the router
  // does not answer. OK for a service that is not ready: it has no work.
  absl::Status Drain(const std::string& address);
  // Takes that back, as far as possible.
  void Undrain(const std::string& address);

  // Waits until services are in use. Errors: FAILED_PRECONDITION with the
  // router's reason where it refuses one; CANCELLED when waiting ended.
  absl::Status AwaitReady(const std::vector<std::string>& addresses);
  // Waits until services are forgotten. Errors: CANCELLED; DEADLINE_EXCEEDED
  // after a minute.
  absl::Status AwaitGone(const std::vector<std::string>& addresses);

 private:
  // Asks again and again for the endpoints of these addresses until `is_done`.
  // What the router answers badly, as it does while it restarts, is asked
  // again.
  using Endpoints = std::vector<admin::v1::Endpoint>;
  absl::Status Await(
      const std::vector<std::string>& addresses,
      absl::FunctionRef<absl::StatusOr<bool>(const Endpoints&)> is_done);

  Client client_;
  const std::function<bool(absl::Duration)> sleep_;
};

}  // namespace expertmesh
