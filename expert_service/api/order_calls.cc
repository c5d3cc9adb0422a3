#include "expert_service/api/order_calls.h"

#include <memory>
#include <optional>
#include <stop_token>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/core/clock.h"
#include "services/core/log.h"
#include "services/core/mutex.h"
#include "services/core/status_macros.h"
#include "services/wire/status_codec.h"

namespace expertmesh::expert {
namespace {

// Errors: INVALID_ARGUMENT for more slots than `max_slots`, before they take
// many times the memory they took on the wire.
absl::StatusOr<std::vector<ExpertSlot>> SlotsOf(
    const google::protobuf::RepeatedPtrField<v1::HostedExperts>& message,
    uint64_t max_slots) {
  uint64_t count = 0;
  for (const v1::HostedExperts& layer : message) {
    count += static_cast<uint64_t>(layer.expert_ids_size());
  }
  if (count > max_slots) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the order names ", count, " slots, and the model has ", max_slots));
  }
  std::vector<ExpertSlot> slots;
  slots.reserve(count);
  for (const v1::HostedExperts& layer : message) {
    for (const uint32_t expert : layer.expert_ids()) {
      slots.push_back({layer.layer(), expert});
    }
  }
  return slots;
}

absl::Status ShuttingDown() {
  return absl::UnavailableError("the expert service is shutting down");
}

absl::Status TooMany() {
  return absl::ResourceExhaustedError("too many orders wait; send fewer");
}

void LogOrder(const char* order, size_t slots, uint64_t epoch,
              absl::Duration started, const absl::Status& status) {
  Log(status.ok() ? LogLevel::kInfo : LogLevel::kWarning, order,
      {{"slots", slots},
       {"epoch", epoch},
       {"seconds", absl::ToDoubleSeconds(Clock::Real()->Now() - started)},
       {"status", status.ToString()}});
}

// Keeps one write under way; progress that comes meanwhile replaces what waits.
class LoadCall final : public grpc::ServerWriteReactor<v1::LoadExpertsProgress>,
                       public std::enable_shared_from_this<LoadCall> {
 public:
  explicit LoadCall(const OrderParts& parts) : parts_(parts) {}

  void Begin(const v1::LoadExpertsRequest& request) {
    self_ = shared_from_this();
    const absl::Status taken = Enqueue(request);
    if (!taken.ok()) End(taken);
  }

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(&mutex_);
      writing_ = false;
    }
    Go();
  }
  void OnCancel() override { stop_.request_stop(); }
  void OnDone() override { self_.reset(); }

 private:
  absl::Status Enqueue(const v1::LoadExpertsRequest& request) {
    ASSIGN_OR_RETURN(slots_,
                     SlotsOf(request.slots(), parts_.contents->max_slots()));
    epoch_ = request.epoch();
    const bool taken = parts_.thread->Add(
        [call = self_](const std::stop_token& stop) { call->Run(stop); });
    return taken ? absl::OkStatus() : TooMany();
  }

  void Run(const std::stop_token& service_stop) {
    if (service_stop.stop_requested()) return End(ShuttingDown());
    const std::stop_callback on_service_stop(service_stop,
                                             [this] { stop_.request_stop(); });
    const absl::Duration started = Clock::Real()->Now();
    SlotLoadOptions options;
    options.progress = [this](int64_t done, int64_t total) {
      Tell(done, total);
    };
    options.stop = stop_.get_token();
    absl::Status status = parts_.contents->Load(slots_, epoch_, options);
    if (absl::IsCancelled(status) && service_stop.stop_requested()) {
      status = ShuttingDown();
    }
    LogOrder("load experts", slots_.size(), epoch_, started, status);
    parts_.on_done();
    End(status);
  }

  void Tell(int64_t done, int64_t total) {
    const uint64_t slot_bytes = parts_.contents->slot_bytes();
    {
      MutexLock lock(&mutex_);
      v1::LoadExpertsProgress& progress = next_.emplace();
      progress.set_slots_done(static_cast<uint32_t>(done));
      progress.set_slots_total(static_cast<uint32_t>(total));
      progress.set_bytes_done(static_cast<uint64_t>(done) * slot_bytes);
      progress.set_bytes_total(static_cast<uint64_t>(total) * slot_bytes);
    }
    Go();
  }

  void End(const absl::Status& status) {
    {
      MutexLock lock(&mutex_);
      end_ = ToGrpcStatus(status);
    }
    Go();
  }

  // Asks of gRPC what comes next, outside the critical section.
  void Go() {
    std::optional<grpc::Status> finish;
    {
      MutexLock lock(&mutex_);
      if (writing_) return;
      if (next_.has_value() && !stop_.stop_requested()) {
        writing_ = true;
        written_ = *std::exchange(next_, std::nullopt);
      } else {
        finish = std::exchange(end_, std::nullopt);
        if (!finish.has_value()) return;
      }
    }
    if (finish.has_value()) {
      Finish(*finish);
    } else {
      StartWrite(&written_);
    }
  }

  const OrderParts& parts_;
  std::vector<ExpertSlot> slots_;
  uint64_t epoch_ = 0;
  std::stop_source stop_;  // when the caller is gone, or the service stops
  v1::LoadExpertsProgress written_;  // of the write under way
  Mutex mutex_;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<v1::LoadExpertsProgress> next_ ABSL_GUARDED_BY(mutex_);
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<LoadCall> self_;  // until OnDone
};

}  // namespace

grpc::ServerWriteReactor<v1::LoadExpertsProgress>* StartLoadExperts(
    const OrderParts& parts, const v1::LoadExpertsRequest& request) {
  const auto call = std::make_shared<LoadCall>(parts);
  LoadCall* reactor = call.get();
  call->Begin(request);
  return reactor;
}

grpc::ServerUnaryReactor* StartUnloadExperts(
    const OrderParts& parts, grpc::CallbackServerContext* context,
    const v1::UnloadExpertsRequest& request,
    v1::UnloadExpertsResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::StatusOr<std::vector<ExpertSlot>> slots =
      SlotsOf(request.slots(), parts.contents->max_slots());
  if (!slots.ok()) {
    reactor->Finish(ToGrpcStatus(slots.status()));
    return reactor;
  }
  const auto run = [&parts, context, reactor, response,
                    slots = *std::move(slots),
                    epoch = request.epoch()](const std::stop_token& stop) {
    if (stop.stop_requested()) {
      return reactor->Finish(ToGrpcStatus(ShuttingDown()));
    }
    // A caller that gave up may have ordered other copies away since.
    if (context->IsCancelled()) return reactor->Finish(grpc::Status::CANCELLED);
    const absl::Duration started = Clock::Real()->Now();
    const absl::Status status = parts.contents->Unload(slots, epoch);
    LogOrder("unload experts", slots.size(), epoch, started, status);
    parts.on_done();
    response->set_memory_bytes(parts.weights->Get()->size_bytes());
    reactor->Finish(ToGrpcStatus(status));
  };
  if (!parts.thread->Add(run)) reactor->Finish(ToGrpcStatus(TooMany()));
  return reactor;
}

}  // namespace expertmesh::expert
