#pragma once

// The expert services this router knows: what each holds and whether it can be
// sent to.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "expertmesh/expert/v1/expert.pb.h"
#include "router_service/transport/grpc_expert_transport.h"
#include "router_service/transport/state_watch.h"
#include "router_service/transport/transport_metrics.h"
#include "router_service/transport/wake_timer.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

enum class EndpointState {
  kConnecting,  // not heard of, or lost: serves nothing
  kReady,       // takes batches
  kDraining,    // finishes what it has, wants nothing new
  kRefused,     // holds experts of another model
};
constexpr size_t kNumEndpointStates = 4;

// "connecting", "ready", "draining", "refused": values of the metric's label.
absl::string_view EndpointStateName(EndpointState state);

// One (layer, expert).
struct ExpertSlot {
  uint32_t layer = 0;
  uint32_t expert_id = 0;
  bool operator==(const ExpertSlot&) const = default;
};

// What is known of an endpoint. From `hosted` on it is what the endpoint
// announced, and empty when nothing it announced holds any more.
struct EndpointInfo {
  std::string address;
  EndpointState state = EndpointState::kConnecting;
  std::string reason;              // why it is neither ready nor draining
  std::vector<ExpertSlot> hosted;  // ascending
  std::string numerics_id;
  std::string expert_dtype;
  std::string device;
  std::string version;
  uint64_t memory_bytes = 0;
  uint32_t queue_rows = 0;
  uint32_t queue_capacity_rows = 0;
  uint64_t inflight_rows = 0;  // sent from here and not answered
  bool operator==(const EndpointInfo&) const = default;
};

// What an endpoint must announce to be used.
struct ModelIdentity {
  std::string model_type;
  uint32_t hidden_size = 0;
  uint32_t num_layers = 0;
  uint32_t num_experts = 0;
  std::string checkpoint_fingerprint;  // empty: not compared
};

// Owns the transport and, beside it, a WatchState stream to each endpoint.
// An endpoint is ready while both its streams are open and its identity fits;
// losing either makes it connecting at once. Thread-safe.
class EndpointSet {
 public:
  struct Options {
    std::vector<std::string> addresses;  // "host:port"
    ModelIdentity model;
    // Hears of every change but of inflight_rows, one at a time, on threads of
    // the transport. Must not block; may call Snapshot(). May be empty.
    std::function<void(const std::vector<EndpointInfo>&)> on_change;
    absl::Duration watch_interval = absl::Seconds(1);
    TransportMetrics metrics;
  };

  // Starts to connect; endpoints need not be up.
  // Errors: INVALID_ARGUMENT for no address, a malformed one, or one twice.
  static absl::StatusOr<std::unique_ptr<EndpointSet>> Create(Options options);
  // Fails batches in flight; no callback runs any more when it returns.
  ~EndpointSet();

  EndpointSet(const EndpointSet&) = delete;
  EndpointSet& operator=(const EndpointSet&) = delete;

  ExpertTransport* transport() { return transport_.get(); }

  // By the transport's endpoint, in the order of the addresses.
  std::vector<EndpointInfo> Snapshot() const;

 private:
  struct Endpoint {
    EndpointInfo info;
    bool is_stream_open = false;
    bool is_watched = false;
    bool is_draining = false;
    // Why not; `refusal` is empty when the identity fits.
    std::string stream_error = "not connected yet";
    std::string watch_error = "not connected yet";
    std::string refusal;
  };

  explicit EndpointSet(Options options);
  void Start();

  void OnStreamChange(size_t index, const absl::Status& status);
  void OnState(size_t index, const expert::v1::EndpointState& state);
  void OnWatchLost(size_t index, const absl::Status& status);
  // Applies `change` to an endpoint and publishes what came of it, if anything.
  void Update(size_t index, absl::FunctionRef<void(Endpoint&)> change);
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(publish_mutex_);
  static void Judge(Endpoint& endpoint);

  const Options options_;
  // Held while publishing, so that snapshots arrive in order; before mutex_.
  Mutex publish_mutex_;
  bool is_stopping_ ABSL_GUARDED_BY(publish_mutex_) = false;
  mutable Mutex mutex_;
  std::vector<Endpoint> endpoints_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<GrpcExpertTransport> transport_;
  std::vector<std::unique_ptr<StateWatch>> watches_;
  std::unique_ptr<WakeTimer> timer_;
};

}  // namespace expertmesh::router
