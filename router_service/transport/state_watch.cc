#include "router_service/transport/state_watch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/clock.h"
#include "services/wire/status_codec.h"

namespace expertmesh::router {

using expert::v1::EndpointState;

// One stream from opening to end.
class StateWatch::Call : public grpc::ClientReadReactor<EndpointState> {
 public:
  Call(StateWatch* watch, absl::Duration interval) : watch_(watch) {
    request_.set_interval_ms(
        static_cast<uint32_t>(absl::ToInt64Milliseconds(interval)));
    watch->stub_->async()->WatchState(&context_, &request_, this);
    StartRead(&state_);
  }

  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    watch_->OnState(state_);
    StartRead(&state_);
  }
  void OnDone(const grpc::Status& status) override {
    watch_->OnEnd(FromGrpcStatus(status));  // destroys this
  }

 private:
  StateWatch* const watch_;
  grpc::ClientContext context_;
  expert::v1::WatchStateRequest request_;
  EndpointState state_;
};

StateWatch::StateWatch(Options options)
    : options_(std::move(options)),
      silence_limit_(5 * options_.interval),
      stub_(expert::v1::ExpertService::NewStub(
          MakeExpertChannel(options_.address))) {}

// Calls are started and cancelled without the lock: gRPC may call back at once.
absl::Duration StateWatch::Sweep(absl::Duration now) {
  std::shared_ptr<Call> to_start;
  std::shared_ptr<Call> to_cancel;
  absl::Duration next;
  {
    MutexLock lock(&mutex_);
    if (shutdown_) return absl::InfiniteDuration();
    if (call_ == nullptr) {
      if (open_next_ > now) return open_next_;
      is_silent_ = false;
      heard_at_ = now;
      call_ = to_start = std::make_shared<Call>(this, options_.interval);
    } else if (!is_silent_ && now - heard_at_ >= silence_limit_) {
      is_silent_ = true;
      to_cancel = call_;
    }
    next = is_silent_ ? absl::InfiniteDuration() : heard_at_ + silence_limit_;
  }
  if (to_start != nullptr) to_start->StartCall();
  if (to_cancel != nullptr) to_cancel->Cancel();
  return next;
}

void StateWatch::OnState(const EndpointState& state) {
  {
    MutexLock lock(&mutex_);
    heard_at_ = Clock::Real()->Now();
    delay_ = kMinReconnectDelay;
  }
  options_.on_state(state);
}

void StateWatch::OnEnd(const absl::Status& status) {
  absl::Status reason = status;
  absl::Duration open_next;
  {
    MutexLock lock(&mutex_);
    if (is_silent_) {
      reason = absl::UnavailableError(absl::StrCat(
          "was silent for ", absl::FormatDuration(silence_limit_)));
    } else if (reason.ok()) {
      reason = absl::UnavailableError("the stream was ended by the service");
    }
    open_next = open_next_ = Clock::Real()->Now() + delay_;
    delay_ = NextReconnectDelay(delay_);
  }
  options_.on_lost(reason);
  // Destroyed after the lock: it is the caller.
  std::shared_ptr<Call> ended;
  MutexLock lock(&mutex_);
  ended = std::move(call_);
  call_ = nullptr;
  // Within the lock, so that nothing of ours runs after Shutdown.
  options_.wake_by(open_next);
  closed_.NotifyAll();
}

void StateWatch::Shutdown() {
  std::shared_ptr<Call> call;
  {
    MutexLock lock(&mutex_);
    shutdown_ = true;
    call = call_;
  }
  if (call != nullptr) call->Cancel();
  MutexLock lock(&mutex_);
  closed_.Wait(lock, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return call_ == nullptr;
  });
}

}  // namespace expertmesh::router
