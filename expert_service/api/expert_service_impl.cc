#include "expert_service/api/expert_service_impl.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/core/log.h"
#include "services/wire/status_codec.h"

namespace expertmesh::expert {
namespace {

// A Forward call that ends before it begins.
class RefusedStream final
    : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit RefusedStream(const absl::Status& status) {
    Finish(ToGrpcStatus(status));
  }
  void OnDone() override { delete this; }
};

// The link that the router offers; null where there is none that this process
// can open, as on other hosts.
std::shared_ptr<LocalLink> OpenLink(const grpc::CallbackServerContext& call) {
  const auto& metadata = call.client_metadata();
  const auto offer = metadata.find(kLocalLinkMetadata);
  if (offer == metadata.end()) return nullptr;
  auto link = LocalLink::Open({offer->second.data(), offer->second.size()});
  Log(LogLevel::kDebug, "a router offers shared memory",
      {{"router", call.peer()},
       {"used", link.ok() ? "yes" : "no"},
       {"reason", link.status().message()}});
  if (!link.ok()) return nullptr;
  return *std::move(link);
}

}  // namespace

ExpertServiceImpl::ExpertServiceImpl(const Options& options,
                                     const Metrics& metrics, const Parts& parts)
    : options_(options),
      metrics_(metrics),
      parts_(parts),
      bytes_(options.max_bytes_in_flight, metrics.bytes_in_flight),
      watchers_([this](v1::EndpointState* state) { FillState(state); }),
      orders_(options.max_waiting_orders) {
  order_parts_ = {&orders_, parts.contents, parts.weights,
                  [this] { watchers_.NotifyChanged(); }};
  forward_.queue = parts.queue;
  forward_.bytes = &bytes_;
  forward_.links = parts.links;
  forward_.traces = parts.traces;
  forward_.shape = {options.endpoint.num_layers(),
                    options.endpoint.hidden_size()};
  forward_.max_batches = options.max_batches_per_stream;
  forward_.answers = metrics.batches;
}

ExpertServiceImpl::~ExpertServiceImpl() {
  EndStreams();
  MutexLock lock(&mutex_);
  stream_gone_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return live_streams_ == 0;
  });
}

void ExpertServiceImpl::AnnounceDrain() {
  SetDrain(DrainState::kForGood).IgnoreError();  // that is never refused
}

absl::Status ExpertServiceImpl::SetDrain(DrainState state) {
  MutexLock lock(&drain_mutex_);
  if (drain_ == DrainState::kForGood && state != DrainState::kForGood) {
    return absl::FailedPreconditionError("the expert service is shutting down");
  }
  drain_ = state;
  const bool draining = state != DrainState::kNone;
  draining_.store(draining);
  options_.on_drain(draining);  // first: who hears of it may ask for health
  watchers_.NotifyChanged();
  return absl::OkStatus();
}

void ExpertServiceImpl::EndStreams() {
  std::vector<std::weak_ptr<ForwardStream>> streams;
  {
    MutexLock lock(&mutex_);
    ended_ = true;
    streams.swap(streams_);
  }
  for (const auto& weak : streams) {
    if (const auto stream = weak.lock()) stream->End();
  }
  watchers_.EndAll();
  orders_.Stop();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>*
ExpertServiceImpl::Forward(grpc::CallbackServerContext* context) {
  if (const absl::Status taken = TakeStream(); !taken.ok()) {
    return new RefusedStream(taken);  // deletes itself
  }
  const auto stream = std::make_shared<ForwardStream>(
      forward_, parts_.links == nullptr ? nullptr : OpenLink(*context),
      [this] { OnStreamGone(); });
  bool ended = false;
  {
    MutexLock lock(&mutex_);
    const auto gone = [](const auto& other) { return other.expired(); };
    streams_.erase(std::remove_if(streams_.begin(), streams_.end(), gone),
                   streams_.end());
    streams_.push_back(stream);
    ended = ended_;
  }
  ForwardStream* reactor = stream.get();
  stream->Begin();
  if (ended) stream->End();
  return reactor;
}

absl::Status ExpertServiceImpl::TakeStream() {
  MutexLock lock(&mutex_);
  if (live_streams_ >= options_.max_streams) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the expert service has ", live_streams_,
                     " streams, and takes no more"));
  }
  ++live_streams_;
  if (metrics_.streams != nullptr) metrics_.streams->Increment();
  return absl::OkStatus();
}

void ExpertServiceImpl::OnStreamGone() {
  MutexLock lock(&mutex_);
  --live_streams_;
  if (metrics_.streams != nullptr) metrics_.streams->Decrement();
  // Under the lock: the destructor may end as soon as it sees none left.
  stream_gone_.NotifyAll();
}

grpc::ServerWriteReactor<v1::EndpointState>* ExpertServiceImpl::WatchState(
    grpc::CallbackServerContext* context,
    const v1::WatchStateRequest* request) {
  return watchers_.Watch(absl::Milliseconds(request->interval_ms()));
}

grpc::ServerWriteReactor<v1::LoadExpertsProgress>*
ExpertServiceImpl::LoadExperts(grpc::CallbackServerContext* context,
                               const v1::LoadExpertsRequest* request) {
  return StartLoadExperts(order_parts_, *request);
}

grpc::ServerUnaryReactor* ExpertServiceImpl::UnloadExperts(
    grpc::CallbackServerContext* context,
    const v1::UnloadExpertsRequest* request,
    v1::UnloadExpertsResponse* response) {
  return StartUnloadExperts(order_parts_, context, *request, response);
}

grpc::ServerUnaryReactor* ExpertServiceImpl::Drain(
    grpc::CallbackServerContext* context, const v1::DrainRequest* request,
    v1::DrainResponse* response) {
  const DrainState state =
      request->drain() ? DrainState::kOrdered : DrainState::kNone;
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(SetDrain(state)));
  return reactor;
}

void ExpertServiceImpl::FillState(v1::EndpointState* state) const {
  *state = options_.endpoint;
  const std::shared_ptr<const ExpertWeights> weights = parts_.weights->Get();
  v1::HostedExperts* hosted = nullptr;
  for (const ExpertSlot& slot : weights->slots()) {
    const auto layer = static_cast<uint32_t>(slot.layer);
    if (hosted == nullptr || hosted->layer() != layer) {
      hosted = state->add_hosted();
      hosted->set_layer(layer);
    }
    hosted->add_expert_ids(static_cast<uint32_t>(slot.expert));
  }
  state->set_memory_bytes(weights->size_bytes());
  state->set_memory_budget_bytes(parts_.contents->memory_budget_bytes());
  state->set_placement_epoch(parts_.contents->epoch());
  state->set_draining(draining_.load());
  state->set_queue_rows(static_cast<uint32_t>(parts_.queue->PendingRows()));
  state->set_queue_capacity_rows(
      static_cast<uint32_t>(parts_.queue->capacity_rows()));
  state->set_credit_rows(
      static_cast<uint32_t>(parts_.queue->NewcomerCredits()));
  const SlotLoad& load = *parts_.load;
  state->set_busy_us(load.busy_us());
  state->set_expert_runs(load.runs());
  for (int64_t layer = 0; layer < load.num_layers(); ++layer) {
    for (int64_t expert = 0; expert < load.num_experts(); ++expert) {
      const uint64_t rows = load.rows(layer, expert);
      if (rows == 0) continue;
      v1::SlotLoad* slot = state->add_load();
      slot->set_layer(static_cast<uint32_t>(layer));
      slot->set_expert_id(static_cast<uint32_t>(expert));
      slot->set_rows(rows);
    }
  }
}

}  // namespace expertmesh::expert
