#include "expert_service/api/expert_service_impl.h"

#include <algorithm>

namespace expertmesh::expert {

ExpertServiceImpl::ExpertServiceImpl(const Options& options,
                                     const Metrics& metrics, ExpertQueue* queue,
                                     const SlotLoad* load)
    : options_(options),
      queue_(queue),
      load_(load),
      watchers_([this](v1::EndpointState* state) { FillState(state); }) {
  forward_.queue = queue;
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
  draining_.store(true);
  watchers_.NotifyChanged();
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
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>*
ExpertServiceImpl::Forward(grpc::CallbackServerContext* context) {
  bool ended = false;
  {
    MutexLock lock(&mutex_);
    ++live_streams_;
    ended = ended_;
  }
  const auto stream =
      std::make_shared<ForwardStream>(forward_, [this] { OnStreamGone(); });
  if (!ended) {
    MutexLock lock(&mutex_);
    const auto gone = [](const auto& other) { return other.expired(); };
    streams_.erase(std::remove_if(streams_.begin(), streams_.end(), gone),
                   streams_.end());
    streams_.push_back(stream);
    ended = ended_;  // EndStreams may have missed it
  }
  ForwardStream* reactor = stream.get();
  stream->Begin();
  if (ended) stream->End();
  return reactor;
}

void ExpertServiceImpl::OnStreamGone() {
  MutexLock lock(&mutex_);
  --live_streams_;
  // Under the lock: the destructor may end as soon as it sees none left.
  stream_gone_.NotifyAll();
}

grpc::ServerWriteReactor<v1::EndpointState>* ExpertServiceImpl::WatchState(
    grpc::CallbackServerContext* context,
    const v1::WatchStateRequest* request) {
  return watchers_.Watch(absl::Milliseconds(request->interval_ms()));
}

void ExpertServiceImpl::FillState(v1::EndpointState* state) const {
  *state = options_.endpoint;
  state->set_draining(draining_.load());
  state->set_queue_rows(static_cast<uint32_t>(queue_->PendingRows()));
  state->set_queue_capacity_rows(
      static_cast<uint32_t>(queue_->capacity_rows()));
  state->set_credit_rows(static_cast<uint32_t>(queue_->NewcomerCredits()));
  for (const v1::HostedExperts& hosted : options_.endpoint.hosted()) {
    for (const uint32_t expert : hosted.expert_ids()) {
      const uint64_t rows = load_->rows(hosted.layer(), expert);
      if (rows == 0) continue;
      v1::SlotLoad* load = state->add_load();
      load->set_layer(hosted.layer());
      load->set_expert_id(expert);
      load->set_rows(rows);
    }
  }
}

}  // namespace expertmesh::expert
