#include "router_service/transport/grpc_expert_transport.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertmesh::router {
namespace {

EndpointConnection::Options WithSeries(EndpointConnection::Options options,
                                       const EndpointSeries& series) {
  options.rpc_duration_seconds = series.rpc_duration_seconds();
  options.inflight_rows = series.inflight_rows();
  options.row_seconds = series.row_seconds();
  options.credit_rows = series.credit_rows();
  options.shared_memory = series.shared_memory();
  options.sent_bytes = series.sent_bytes();
  options.received_bytes = series.received_bytes();
  return options;
}

}  // namespace

GrpcExpertTransport::Peer::Peer(const TransportMetrics& metrics,
                                const std::string& pool,
                                EndpointConnection::Options options,
                                grpc::CompletionQueue* queue)
    : series(std::in_place, metrics, pool, options.address),
      connection(WithSeries(std::move(options), *series), queue) {}

GrpcExpertTransport::GrpcExpertTransport(Options options)
    : options_(std::move(options)),
      timer_(std::make_unique<WakeTimer>(
          [this](absl::Duration now) { return Sweep(now); })),
      poller_([this] { Poll(); }) {}

GrpcExpertTransport::~GrpcExpertTransport() {
  for (const auto& [endpoint, peer] : AllPeers()) peer->connection.Shutdown();
  queue_.Shutdown();
  poller_.join();
  // Last: the polling thread wakes it.
  timer_.reset();
}

int GrpcExpertTransport::Add(const std::string& pool,
                             const std::string& address) {
  const int endpoint = next_endpoint_.fetch_add(1);
  EndpointConnection::Options connection;
  connection.address = address;
  connection.tls = options_.tls;
  if (options_.shared_memory) connection.link_readers = &link_readers_;
  connection.on_change = [this, endpoint](const absl::Status& status) {
    if (options_.on_stream_change) options_.on_stream_change(endpoint, status);
  };
  connection.wake_by = [this](absl::Duration time) { timer_->WakeBy(time); };
  auto peer = std::make_shared<Peer>(options_.metrics, pool,
                                     std::move(connection), &queue_);
  {
    MutexLock lock(&mutex_);
    peers_.emplace(endpoint, std::move(peer));
  }
  timer_->WakeBy(absl::ZeroDuration());
  return endpoint;
}

void GrpcExpertTransport::Remove(int endpoint) {
  if (const auto peer = Find(endpoint)) peer->connection.Leave();
}

void GrpcExpertTransport::Send(int endpoint, const ExpertBatch& batch,
                               BatchCompletion* completion) {
  if (const auto peer = Find(endpoint)) {
    peer->connection.Send(batch, completion);
    return;
  }
  completion->Done({.status = absl::UnavailableError(absl::StrCat(
                        "expert service ", endpoint, " has left the mesh"))});
}

uint64_t GrpcExpertTransport::inflight_rows(int endpoint) const {
  const auto peer = Find(endpoint);
  return peer == nullptr ? 0 : peer->connection.inflight_rows();
}

std::shared_ptr<GrpcExpertTransport::Peer> GrpcExpertTransport::Find(
    int endpoint) const {
  MutexLock lock(&mutex_);
  const auto found = peers_.find(endpoint);
  return found == peers_.end() ? nullptr : found->second;
}

GrpcExpertTransport::Peers GrpcExpertTransport::AllPeers() const {
  MutexLock lock(&mutex_);
  return peers_;
}

void GrpcExpertTransport::Poll() {
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
    const auto* event = static_cast<EndpointConnection::Tag*>(tag);
    event->connection->OnEvent(event->event, ok);
  }
}

absl::Duration GrpcExpertTransport::Sweep(absl::Duration now) {
  absl::Duration next = absl::InfiniteDuration();
  for (const auto& [endpoint, peer] : AllPeers()) {
    next = std::min(next, peer->connection.Sweep(now));
    if (peer->connection.IsGone()) Drop(endpoint, peer.get());
  }
  return next;
}

void GrpcExpertTransport::Drop(int endpoint, Peer* peer) {
  // A Send may still hold the peer, but a connection that is gone counts
  // nothing; and on_gone may bring the address back, with series of this name.
  peer->series.reset();
  {
    MutexLock lock(&mutex_);
    peers_.erase(endpoint);
  }
  if (options_.on_gone) options_.on_gone(endpoint);
}

}  // namespace expertmesh::router
