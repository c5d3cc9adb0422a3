#include "expert_service/api/state_broadcaster.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "services/core/clock.h"

namespace expertmesh::expert {
namespace {

constexpr absl::Duration kDefaultInterval = absl::Seconds(1);
constexpr absl::Duration kMinInterval = absl::Milliseconds(10);

grpc::Status ServiceStops() {
  return grpc::Status(grpc::StatusCode::UNAVAILABLE,
                      "the expert service is shutting down");
}

}  // namespace

// One call. Keeps one write under way; a state that comes meanwhile is made
// anew when the write is done.
class StateBroadcaster::Watcher final
    : public grpc::ServerWriteReactor<v1::EndpointState> {
 public:
  Watcher(StateBroadcaster* owner, absl::Duration interval)
      : owner_(owner), interval_(interval) {}

  // Of the owner's loop.
  absl::Duration due() const { return due_; }
  absl::Duration interval() const { return interval_; }
  void SetDue(absl::Duration now) { due_ = now + interval_; }

  void Send() {
    {
      MutexLock lock(&mutex_);
      if (finish_.has_value()) return;
      again_ = writing_;
      if (writing_) return;
      writing_ = true;
      FillState();
    }
    StartWrite(&state_);
  }

  void End(const grpc::Status& status) {
    {
      MutexLock lock(&mutex_);
      if (finish_.has_value()) return;
      finish_ = status;
      if (writing_) return;  // OnWriteDone finishes
    }
    Finish(status);
  }

  void OnWriteDone(bool ok) override {
    bool write = false;
    grpc::Status status;
    {
      MutexLock lock(&mutex_);
      writing_ = false;
      if (!ok && !finish_.has_value()) finish_ = grpc::Status::CANCELLED;
      if (finish_.has_value()) {
        status = *finish_;
      } else if (again_) {
        again_ = false;
        writing_ = write = true;
        FillState();
      } else {
        return;
      }
    }
    if (write) {
      StartWrite(&state_);
    } else {
      Finish(status);
    }
  }

  void OnCancel() override { End(grpc::Status::CANCELLED); }
  void OnDone() override { owner_->Remove(this); }

 private:
  void FillState() {
    state_.Clear();
    owner_->fill_(&state_);
  }

  StateBroadcaster* const owner_;
  const absl::Duration interval_;
  absl::Duration due_;
  v1::EndpointState state_;  // of the write under way
  Mutex mutex_;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool again_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<grpc::Status> finish_ ABSL_GUARDED_BY(mutex_);
};

StateBroadcaster::StateBroadcaster(std::function<void(v1::EndpointState*)> fill)
    : fill_(std::move(fill)), thread_([this] { Loop(); }) {}

StateBroadcaster::~StateBroadcaster() {
  EndAll();
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
  MutexLock lock(&mutex_);
  changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return watchers_.empty();
  });
}

grpc::ServerWriteReactor<v1::EndpointState>* StateBroadcaster::Watch(
    absl::Duration interval) {
  if (interval == absl::ZeroDuration()) interval = kDefaultInterval;
  auto watcher =
      std::make_shared<Watcher>(this, std::max(interval, kMinInterval));
  watcher->SetDue(Clock::Real()->Now());
  bool ended = false;
  {
    MutexLock lock(&mutex_);
    ended = ended_;
    watchers_.push_back(watcher);
    ++arrivals_;
    changed_.NotifyAll();  // the loop may sleep longer than the new interval
  }
  if (ended) {
    watcher->End(ServiceStops());
  } else {
    watcher->Send();
  }
  return watcher.get();
}

void StateBroadcaster::NotifyChanged() {
  MutexLock lock(&mutex_);
  notify_ = true;
  changed_.NotifyAll();
}

absl::Duration StateBroadcaster::LongestInterval() const {
  MutexLock lock(&mutex_);
  absl::Duration longest;
  for (const auto& watcher : watchers_) {
    longest = std::max(longest, watcher->interval());
  }
  return longest;
}

void StateBroadcaster::EndAll() {
  std::vector<std::shared_ptr<Watcher>> watchers;
  {
    MutexLock lock(&mutex_);
    ended_ = true;
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) watcher->End(ServiceStops());
}

void StateBroadcaster::Remove(Watcher* watcher) {
  std::shared_ptr<Watcher> last;  // destroyed outside the critical section
  MutexLock lock(&mutex_);
  const auto place =
      std::find_if(watchers_.begin(), watchers_.end(),
                   [&](const auto& other) { return other.get() == watcher; });
  last = std::move(*place);
  watchers_.erase(place);
  // Under the lock: the destructor may end as soon as it sees none left.
  changed_.NotifyAll();
}

void StateBroadcaster::Loop() {
  std::vector<std::shared_ptr<Watcher>> due;
  while (true) {
    {
      MutexLock lock(&mutex_);
      absl::Duration first = absl::InfiniteDuration();
      for (const auto& watcher : watchers_) {
        first = std::min(first, watcher->due());
      }
      const uint64_t known = arrivals_;
      changed_.WaitFor(lock,
                       std::clamp(first - Clock::Real()->Now(),
                                  absl::ZeroDuration(), absl::Hours(1)),
                       [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
                         return stop_ || notify_ || arrivals_ != known;
                       });
      if (stop_) return;
      const absl::Duration now = Clock::Real()->Now();
      for (const auto& watcher : watchers_) {
        if (!notify_ && watcher->due() > now) continue;
        watcher->SetDue(now);
        due.push_back(watcher);
      }
      notify_ = false;
    }
    for (const auto& watcher : due) watcher->Send();
    due.clear();
  }
}

}  // namespace expertmesh::expert
