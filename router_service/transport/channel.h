#pragma once

#include <grpcpp/channel.h>

#include <algorithm>
#include <memory>
#include <string>

#include "absl/time/time.h"

namespace expertmesh::router {

// Between two attempts on an endpoint: quick at first, doubling to the bound.
constexpr absl::Duration kMinReconnectDelay = absl::Milliseconds(50);
constexpr absl::Duration kMaxReconnectDelay = absl::Seconds(2);

// A channel to an expert service for long-lived streams, with a connection of
// its own even when another channel has the same address. Connects on use.
std::shared_ptr<grpc::Channel> MakeExpertChannel(const std::string& address);

// The delay to wait after `delay` did not help.
inline absl::Duration NextReconnectDelay(absl::Duration delay) {
  return std::min(delay * 2, kMaxReconnectDelay);
}

}  // namespace expertmesh::router
