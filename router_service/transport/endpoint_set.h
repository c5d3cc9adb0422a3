#pragma once

// The expert services this router knows: what each holds and whether it can be
// sent to.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "expertmesh/expert/v1/expert.pb.h"
#include "router_service/transport/channel.h"
#include "router_service/transport/endpoint_announcement.h"
#include "router_service/transport/endpoint_info.h"
#include "router_service/transport/grpc_expert_transport.h"
#include "router_service/transport/state_watch.h"
#include "router_service/transport/transport_metrics.h"
#include "router_service/transport/wake_timer.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Owns the transport and, beside it, a WatchState stream to each endpoint.
//
// Endpoints are the addresses of pools, which come and go. An endpoint is ready
// while both its streams are open and what it announces fits the mesh; losing
// either makes it connecting at once. One whose address was taken away is
// leaving until nothing is in flight on it, and then forgotten; should the
// address come back, it is another endpoint, which begins when the old one is
// gone. A service that several addresses lead to is used by one of them, and
// refused at the others until that one is lost. Thread-safe.
class EndpointSet {
 public:
  struct Options {
    ModelIdentity model;
    // Hears of every change but of what changes with every batch: rows in
    // flight, queued and granted, and counters. One at a time, on threads of
    // the transport and of SetAddresses. Must not block; may call Snapshot().
    // May be empty.
    std::function<void(const std::vector<EndpointInfo>&)> on_change;
    // Hears what an endpoint that fits the mesh counted, whenever it speaks; of
    // one endpoint in order. On threads of the transport; must not block. May
    // be empty.
    std::function<void(const std::string& address, const EndpointLoad& load)>
        on_load;
    absl::Duration watch_interval = absl::Seconds(1);
    bool shared_memory = true;       // to endpoints on this host
    const ExpertTls* tls = nullptr;  // null: plain; outlives the set
    TransportMetrics metrics;
  };

  // Publishes that there is no endpoint.
  explicit EndpointSet(Options options);
  // Fails batches in flight; no callback runs any more when it returns.
  ~EndpointSet();

  EndpointSet(const EndpointSet&) = delete;
  EndpointSet& operator=(const EndpointSet&) = delete;

  // From now on these, "host:port" each, are the addresses of `pool`; new ones
  // get indices in this order. An address in two pools belongs to the first by
  // name.
  void SetAddresses(const std::string& pool,
                    const std::vector<std::string>& addresses);

  ExpertTransport* transport() { return transport_.get(); }

  // By ascending index.
  std::vector<EndpointInfo> Snapshot() const;

 private:
  struct Endpoint {
    EndpointInfo info;
    bool is_leaving = false;
    // What is left of one that leaves: its connection, its watch.
    bool has_connection = true;
    std::shared_ptr<StateWatch> watch;
    bool is_stream_open = false;
    bool is_watched = false;
    bool is_draining = false;
    // Why not.
    std::string stream_error = "not connected yet";
    std::string watch_error = "not connected yet";
    std::optional<Refusal> refusal;
  };

  void Reconcile() ABSL_EXCLUSIVE_LOCKS_REQUIRED(publish_mutex_);
  // The address → pool that should be here.
  std::map<std::string, std::string> Wanted() const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(publish_mutex_);
  void Join(const std::string& pool, const std::string& address)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(publish_mutex_);
  std::shared_ptr<StateWatch> MakeWatch(int index, const std::string& address);
  absl::Duration Sweep(absl::Duration now);
  // Applies `change` to one that leaves; forgets it if nothing is left of it.
  void LetGo(int index, absl::FunctionRef<void(Endpoint&)> change);

  void OnStreamChange(int index, const absl::Status& status);
  void OnState(int index, const expert::v1::EndpointState& state);
  void ReportLoad(int index, const expert::v1::EndpointState& state);
  void OnWatchLost(int index, const absl::Status& status);
  // What an endpoint must announce, given what the others do.
  ModelIdentity IdentityFor(int index) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The address of another endpoint that is this process; empty: none.
  std::string OtherAddressOf(int index, uint64_t instance_id) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Applies `change` to an endpoint and publishes what came of it, if anything.
  // `change` runs with mutex_ held.
  void Update(int index, absl::FunctionRef<void(Endpoint&)> change);
  // Logs and counts where the state is another one than `before`.
  void Report(EndpointState before, const Endpoint& endpoint) const;
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(publish_mutex_);
  static void Judge(Endpoint& endpoint);
  // Whether what it announced was found to fit.
  static bool IsAccepted(const Endpoint& endpoint);

  const Options options_;
  // Held while publishing, so that snapshots arrive in order; before mutex_.
  Mutex publish_mutex_;
  bool is_stopping_ ABSL_GUARDED_BY(publish_mutex_) = false;
  std::map<std::string, std::vector<std::string>> pools_
      ABSL_GUARDED_BY(publish_mutex_);
  mutable Mutex mutex_;
  std::map<int, Endpoint> endpoints_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<GrpcExpertTransport> transport_;
  std::unique_ptr<WakeTimer> timer_;
};

}  // namespace expertmesh::router
