#pragma once

// One endpoint's WatchState stream, on a channel of its own, so that control
// never waits behind data.

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "expertmesh/expert/v1/expert.grpc.pb.h"
#include "router_service/transport/channel.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Keeps a WatchState stream to `address` open, and opens it again when it ends
// or falls silent. Driven by Sweep; thread-safe.
class StateWatch {
 public:
  struct Options {
    std::string address;
    // How often the endpoint is to speak. Silent for five times as long, it is
    // taken for gone.
    absl::Duration interval = absl::Seconds(1);
    // Both are told in order, one at a time, on gRPC's threads; must not block.
    std::function<void(const expert::v1::EndpointState&)> on_state;
    // The stream ended or failed to open; what was known is known no more.
    std::function<void(const absl::Status&)> on_lost;
    // Asks for a Sweep at a time of Clock::Real(), or before.
    std::function<void(absl::Duration)> wake_by;
    const ExpertTls* tls = nullptr;  // null: plain
  };

  // Does nothing until the first Sweep.
  explicit StateWatch(Options options);

  // Opens the stream if that is due; ends a silent one. Returns when it wants
  // to be called again.
  absl::Duration Sweep(absl::Duration now);

  // Ends the stream that is open, if any, because of `why`; it is opened again.
  // No message of it is told any more but one that is being told.
  void Restart(const absl::Status& why);

  // Ends the stream for good. No callback runs any more when it returns.
  void Shutdown();

 private:
  class Call;

  void OnState(const expert::v1::EndpointState& state);
  void OnEnd(const absl::Status& status);

  const Options options_;
  const absl::Duration silence_limit_;
  const std::unique_ptr<expert::v1::ExpertService::Stub> stub_;

  Mutex mutex_;
  CondVar closed_;
  // From opening a call until nothing is left of it.
  bool is_open_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<Call> call_ ABSL_GUARDED_BY(mutex_);
  bool shutdown_ ABSL_GUARDED_BY(mutex_) = false;
  // Why the call was cancelled; OK while it was not.
  absl::Status cancelled_ ABSL_GUARDED_BY(mutex_);
  absl::Duration heard_at_ ABSL_GUARDED_BY(mutex_) = absl::ZeroDuration();
  absl::Duration open_next_ ABSL_GUARDED_BY(mutex_) = absl::ZeroDuration();
  absl::Duration delay_ ABSL_GUARDED_BY(mutex_) = kMinReconnectDelay;
};

}  // namespace expertmesh::router
