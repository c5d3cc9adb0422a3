#include "router_service/transport/expert_orders.h"

#include <grpcpp/client_context.h>

#include <chrono>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "expertmesh/expert/v1/expert.grpc.pb.h"
#include "router_service/transport/channel.h"
#include "services/core/mutex.h"
#include "services/wire/status_codec.h"

namespace expertmesh::router {
namespace {

// An order may pull gigabytes from a peer before it is done.
constexpr absl::Duration kLoadTimeout = absl::Minutes(10);
constexpr absl::Duration kOrderTimeout = absl::Seconds(30);

void FillSlots(
    const std::vector<ExpertSlot>& slots,
    google::protobuf::RepeatedPtrField<expert::v1::HostedExperts>* out) {
  for (const ExpertSlot& slot : slots) {
    if (out->empty() || out->rbegin()->layer() != slot.layer) {
      out->Add()->set_layer(slot.layer);
    }
    out->rbegin()->add_expert_ids(slot.expert_id);
  }
}

// The calls under way, so that they can be given up and waited for.
class OpenCalls {
 public:
  void Add(grpc::ClientContext* context) {
    MutexLock lock(&mutex_);
    contexts_.insert(context);
  }
  void Remove(grpc::ClientContext* context) {
    MutexLock lock(&mutex_);
    contexts_.erase(context);
    none_left_.NotifyAll();
  }
  void CancelAll() {
    MutexLock lock(&mutex_);
    for (grpc::ClientContext* context : contexts_) context->TryCancel();
  }
  void AwaitNone() {
    MutexLock lock(&mutex_);
    none_left_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return contexts_.empty();
    });
  }

 private:
  Mutex mutex_;
  CondVar none_left_;
  std::set<grpc::ClientContext*> contexts_ ABSL_GUARDED_BY(mutex_);
};

// What every order has; deletes itself in End.
class Call {
 public:
  Call(OpenCalls* calls, const std::shared_ptr<grpc::Channel>& channel,
       absl::Duration timeout, ExpertOrders::Done done)
      : stub_(expert::v1::ExpertService::NewStub(channel)),
        calls_(calls),
        done_(std::move(done)) {
    context_.set_deadline(std::chrono::system_clock::now() +
                          absl::ToChronoMicroseconds(timeout));
    calls_->Add(&context_);
  }
  virtual ~Call() = default;

 protected:
  void End(const grpc::Status& status) {
    done_(FromGrpcStatus(status));
    OpenCalls* const calls = calls_;
    grpc::ClientContext* const context = &context_;
    // Last: whoever waits for the calls may destroy their owner now.
    calls->Remove(context);
    delete this;
  }

  grpc::ClientContext context_;
  std::unique_ptr<expert::v1::ExpertService::Stub> stub_;

 private:
  OpenCalls* const calls_;
  const ExpertOrders::Done done_;
};

class LoadCall final
    : public Call,
      public grpc::ClientReadReactor<expert::v1::LoadExpertsProgress> {
 public:
  using Call::Call;
  void Begin(const std::vector<ExpertSlot>& slots, uint64_t epoch) {
    FillSlots(slots, request_.mutable_slots());
    request_.set_epoch(epoch);
    stub_->async()->LoadExperts(&context_, &request_, this);
    StartRead(&progress_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (ok) StartRead(&progress_);
  }
  void OnDone(const grpc::Status& status) override { End(status); }

 private:
  expert::v1::LoadExpertsRequest request_;
  expert::v1::LoadExpertsProgress progress_;
};

class UnloadCall final : public Call {
 public:
  using Call::Call;
  void Begin(const std::vector<ExpertSlot>& slots, uint64_t epoch) {
    FillSlots(slots, request_.mutable_slots());
    request_.set_epoch(epoch);
    stub_->async()->UnloadExperts(
        &context_, &request_, &response_,
        [this](const grpc::Status& status) { End(status); });
  }

 private:
  expert::v1::UnloadExpertsRequest request_;
  expert::v1::UnloadExpertsResponse response_;
};

class DrainCall final : public Call {
 public:
  using Call::Call;
  void Begin(bool drain) {
    request_.set_drain(drain);
    stub_->async()->Drain(&context_, &request_, &response_,
                          [this](const grpc::Status& status) { End(status); });
  }

 private:
  expert::v1::DrainRequest request_;
  expert::v1::DrainResponse response_;
};

class GrpcExpertOrders final : public ExpertOrders {
 public:
  explicit GrpcExpertOrders(const ExpertTls* tls) : tls_(tls) {}
  ~GrpcExpertOrders() override {
    calls_.CancelAll();
    calls_.AwaitNone();
  }

  void Load(const std::string& address, const std::vector<ExpertSlot>& slots,
            uint64_t epoch, Done done) override {
    (new LoadCall(&calls_, Channel(address), kLoadTimeout, std::move(done)))
        ->Begin(slots, epoch);
  }
  void Unload(const std::string& address, const std::vector<ExpertSlot>& slots,
              uint64_t epoch, Done done) override {
    (new UnloadCall(&calls_, Channel(address), kOrderTimeout, std::move(done)))
        ->Begin(slots, epoch);
  }
  void Drain(const std::string& address, bool drain, Done done) override {
    (new DrainCall(&calls_, Channel(address), kOrderTimeout, std::move(done)))
        ->Begin(drain);
  }
  void CancelAll() override { calls_.CancelAll(); }

 private:
  std::shared_ptr<grpc::Channel> Channel(const std::string& address) const {
    return MakeExpertChannel(address, tls_);
  }

  const ExpertTls* const tls_;
  OpenCalls calls_;
};

}  // namespace

std::unique_ptr<ExpertOrders> MakeGrpcExpertOrders(const ExpertTls* tls) {
  return std::make_unique<GrpcExpertOrders>(tls);
}

}  // namespace expertmesh::router
