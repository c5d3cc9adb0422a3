#pragma once

// Orders to expert services: what to hold, and whether to take work.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "router_service/transport/channel.h"
#include "router_service/transport/endpoint_info.h"

namespace expertmesh::router {

// Each order ends with one call of `done`, on a thread of the transport or on
// the caller's; it must not block. Errors are the service's (protos/expertmesh/
// expert/v1/expert.proto); DEADLINE_EXCEEDED after the time limit, UNAVAILABLE
// where the service cannot be reached, CANCELLED after CancelAll. Thread-safe.
class ExpertOrders {
 public:
  using Done = std::function<void(const absl::Status&)>;
  virtual ~ExpertOrders() = default;

  virtual void Load(const std::string& address,
                    const std::vector<ExpertSlot>& slots, uint64_t epoch,
                    Done done) = 0;
  virtual void Unload(const std::string& address,
                      const std::vector<ExpertSlot>& slots, uint64_t epoch,
                      Done done) = 0;
  virtual void Drain(const std::string& address, bool drain, Done done) = 0;

  // Gives up orders under way.
  virtual void CancelAll() = 0;
};

// Over gRPC, a connection for each order. Its destructor gives up orders under
// way; no `done` is called any more when it returns. `tls` (null: plain) must
// outlive it.
std::unique_ptr<ExpertOrders> MakeGrpcExpertOrders(const ExpertTls* tls);

}  // namespace expertmesh::router
