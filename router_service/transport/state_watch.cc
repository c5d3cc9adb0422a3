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
          MakeExpertChannel(options_.address, options_.tls))) {}

// Calls are started and cancelled without the lock: gRPC may call back at once.
absl::Duration StateWatch::Sweep(absl::Duration now) {
  std::shared_ptr<Call> opened;
  absl::Duration heard_at;
  {
    MutexLock lock(&mutex_);
    if (shutdown_) return absl::InfiniteDuration();
    if (!is_open_) {
      if (open_next_ > now) return open_next_;
      is_open_ = true;
      cancelled_ = absl::OkStatus();
      heard_at_ = now;
      call_ = opened = std::make_shared<Call>(this, options_.interval);
    }
    heard_at = heard_at_;
  }
  if (opened != nullptr) opened->StartCall();
  if (now - heard_at < silence_limit_) return heard_at + silence_limit_;
  Restart(absl::UnavailableError(
      absl::StrCat("was silent for ", absl::FormatDuration(silence_limit_))));
  return absl::InfiniteDuration();  // the end of the call asks for more
}

void StateWatch::Restart(const absl::Status& why) {
  std::shared_ptr<Call> call;
  {
    MutexLock lock(&mutex_);
    if (call_ == nullptr || !cancelled_.ok()) return;
    cancelled_ = why;
    call = call_;
  }
  call->Cancel();
}

void StateWatch::OnState(const EndpointState& state) {
  {
    MutexLock lock(&mutex_);
    if (!cancelled_.ok()) return;  // too late: it is asked anew
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
    if (!cancelled_.ok()) {
      reason = cancelled_;
    } else if (reason.ok()) {
      reason = absl::UnavailableError("the stream was ended by the service");
    }
    open_next = open_next_ = Clock::Real()->Now() + delay_;
    delay_ = NextReconnectDelay(delay_);
  }
  options_.on_lost(reason);
  // The caller of this. It goes before Shutdown may return: with it the last
  // reference to the channel could go, here on a thread of gRPC's that the
  // channel's destructor waits for.
  std::shared_ptr<Call> ended;
  {
    MutexLock lock(&mutex_);
    ended = std::move(call_);
  }
  ended.reset();
  MutexLock lock(&mutex_);
  is_open_ = false;
  // Within the lock, so that nothing of ours runs after Shutdown.
  options_.wake_by(open_next);
  closed_.NotifyAll();
}

void StateWatch::Shutdown() {
  {
    MutexLock lock(&mutex_);
    shutdown_ = true;
  }
  Restart(absl::CancelledError("this router is shutting down"));
  MutexLock lock(&mutex_);
  closed_.Wait(lock,
               [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return !is_open_; });
}

}  // namespace expertmesh::router
