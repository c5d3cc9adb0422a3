#pragma once

#include <grpcpp/channel.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "services/core/mutex.h"
#include "services/runtime/tls_identity.h"

namespace expertmesh::router {

// Between two attempts on an endpoint: quick at first, doubling to the bound.
constexpr absl::Duration kMinReconnectDelay = absl::Milliseconds(50);
constexpr absl::Duration kMaxReconnectDelay = absl::Seconds(2);

// How expert services are known to be who they should be. Thread-safe.
class ExpertTls {
 public:
  // Null: connections are plain. Must outlive the channels' making.
  explicit ExpertTls(const TlsIdentity* identity) : identity_(identity) {}

  // The name that a service's certificate must be for; where none is set, the
  // address's host.
  void Expect(const std::string& address, const std::string& name);

  const TlsIdentity* identity() const { return identity_; }
  std::string NameOf(const std::string& address) const;

 private:
  const TlsIdentity* const identity_;
  mutable Mutex mutex_;
  std::map<std::string, std::string> names_ ABSL_GUARDED_BY(mutex_);
};

// A channel to an expert service for long-lived streams, with a connection of
// its own even when another channel has the same address. Connects on use.
// `tls` null: plain.
std::shared_ptr<grpc::Channel> MakeExpertChannel(const std::string& address,
                                                 const ExpertTls* tls);

// The delay to wait after `delay` did not help.
inline absl::Duration NextReconnectDelay(absl::Duration delay) {
  return std::min(delay * 2, kMaxReconnectDelay);
}

}  // namespace expertmesh::router
