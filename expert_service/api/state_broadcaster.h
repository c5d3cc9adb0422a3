#pragma once

// WatchState: the endpoint's state to everyone who watches.

#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "expertmesh/expert/v1/expert.pb.h"
#include "services/core/mutex.h"

namespace expertmesh::expert {

// Owns the reactors of all WatchState calls and one thread that makes them
// write: at once, after each NotifyChanged, and at each one's interval. A
// watcher that reads slowly gets the newest state when it is ready for it.
// Thread-safe.
class StateBroadcaster {
 public:
  // `fill` puts the state of now into an empty message; called from any thread.
  explicit StateBroadcaster(std::function<void(v1::EndpointState*)> fill);
  // Ends the calls and waits until gRPC has let go of them.
  ~StateBroadcaster();

  // The reactor of a new call.
  grpc::ServerWriteReactor<v1::EndpointState>* Watch(absl::Duration interval);

  void NotifyChanged();
  // Of those the watchers asked for; 0 without watchers.
  absl::Duration LongestInterval() const;
  // Ends all calls, and new ones at once, with UNAVAILABLE.
  void EndAll();

 private:
  class Watcher;

  void Loop();
  void Remove(Watcher* watcher);

  const std::function<void(v1::EndpointState*)> fill_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<std::shared_ptr<Watcher>> watchers_ ABSL_GUARDED_BY(mutex_);
  uint64_t arrivals_ ABSL_GUARDED_BY(mutex_) = 0;
  bool notify_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace expertmesh::expert
