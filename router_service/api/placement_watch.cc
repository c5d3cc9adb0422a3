#include "router_service/api/placement_watch.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "router_service/api/placement_messages.h"
#include "router_service/api/raw_message.h"
#include "services/wire/status_codec.h"

namespace expertmesh::router {
namespace {

grpc::Status ShuttingDown() {
  return {grpc::StatusCode::UNAVAILABLE, "the router is shutting down"};
}

class Refusal final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit Refusal(const absl::Status& status) { Finish(ToGrpcStatus(status)); }
  void OnDone() override { delete this; }
};

}  // namespace

class PlacementWatchers::Watcher final
    : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit Watcher(PlacementWatchers* owner) : owner_(owner) {}

  // Sends the placement as it is now, or once the write under way is done.
  void Send() {
    {
      MutexLock lock(&mutex_);
      again_ = true;
    }
    Go();
  }
  void End(grpc::Status status) {
    {
      MutexLock lock(&mutex_);
      if (!finished_) finish_ = std::move(status);
    }
    Go();
  }

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(&mutex_);
      writing_ = false;
      if (!ok && !finished_) finish_ = grpc::Status::CANCELLED;
    }
    Go();
  }
  void OnCancel() override { End(grpc::Status::CANCELLED); }
  void OnDone() override {
    PlacementWatchers* const owner = owner_;
    std::shared_ptr<Watcher> self;  // destroyed outside the critical section
    MutexLock lock(&owner->mutex_);
    const auto place =
        std::find_if(owner->watchers_.begin(), owner->watchers_.end(),
                     [this](const auto& other) { return other.get() == this; });
    self = std::move(*place);
    owner->watchers_.erase(place);
  }

 private:
  // Asks of gRPC what comes next, outside the critical section.
  void Go() {
    std::optional<grpc::Status> finish;
    {
      MutexLock lock(&mutex_);
      if (writing_ || finished_) return;
      if (finish_.has_value()) {
        finish = std::exchange(finish_, std::nullopt);
        finished_ = true;
      } else if (again_) {
        again_ = false;
        writing_ = true;
      } else {
        return;
      }
    }
    if (finish.has_value()) return Finish(*finish);
    admin::v1::Placement message;
    FillPlacement(owner_->controller_->placement(), &message);
    written_ = SerializeMessage(message);
    StartWrite(&written_);
  }

  PlacementWatchers* const owner_;
  grpc::ByteBuffer written_;  // of the write under way
  Mutex mutex_;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool again_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<grpc::Status> finish_ ABSL_GUARDED_BY(mutex_);
};

PlacementWatchers::PlacementWatchers(Controller* controller)
    : controller_(controller) {
  controller_->OnChange([this] { OnChange(); });
}

PlacementWatchers::~PlacementWatchers() { controller_->OnChange(nullptr); }

grpc::ServerWriteReactor<grpc::ByteBuffer>* PlacementWatchers::Add() {
  const auto watcher = std::make_shared<Watcher>(this);
  bool ended = false;
  {
    MutexLock lock(&mutex_);
    ended = ended_;
    watchers_.push_back(watcher);
  }
  if (ended) {
    watcher->End(ShuttingDown());
  } else {
    watcher->Send();
  }
  return watcher.get();
}

void PlacementWatchers::OnChange() {
  std::vector<std::shared_ptr<Watcher>> watchers;
  {
    MutexLock lock(&mutex_);
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) watcher->Send();
}

void PlacementWatchers::EndAll() {
  std::vector<std::shared_ptr<Watcher>> watchers;
  {
    MutexLock lock(&mutex_);
    ended_ = true;
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) watcher->End(ShuttingDown());
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* RefuseWatch(
    const absl::Status& status) {
  return new Refusal(status);
}

}  // namespace expertmesh::router
