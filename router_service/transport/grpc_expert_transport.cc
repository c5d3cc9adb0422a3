#include "router_service/transport/grpc_expert_transport.h"

#include <algorithm>
#include <utility>

namespace expertmesh::router {

GrpcExpertTransport::GrpcExpertTransport(Options options) {
  for (size_t i = 0; i < options.addresses.size(); ++i) {
    const int endpoint = static_cast<int>(i);
    EndpointConnection::Options connection;
    connection.address = options.addresses[i];
    connection.on_change = [endpoint, tell = options.on_stream_change](
                               const absl::Status& status) {
      if (tell) tell(endpoint, status);
    };
    connection.wake_by = [this](absl::Duration time) { timer_->WakeBy(time); };
    connection.rpc_duration_seconds =
        MetricAt(options.metrics.rpc_duration_seconds, i);
    connection.inflight_rows = MetricAt(options.metrics.inflight_rows, i);
    connections_.push_back(
        std::make_unique<EndpointConnection>(std::move(connection), &queue_));
  }
  timer_ = std::make_unique<WakeTimer>(
      [this](absl::Duration now) { return Sweep(now); });
}

GrpcExpertTransport::~GrpcExpertTransport() {
  for (const auto& connection : connections_) connection->Shutdown();
  queue_.Shutdown();
  if (poller_.joinable()) {
    poller_.join();
  } else {
    Poll();  // a queue must be drained before it goes
  }
  // Last: the polling thread wakes it.
  timer_.reset();
}

void GrpcExpertTransport::Start() {
  poller_ = std::thread([this] { Poll(); });
  timer_->WakeBy(absl::ZeroDuration());
}

void GrpcExpertTransport::Send(int endpoint, const ExpertBatch& batch,
                               BatchCompletion* completion) {
  connections_[endpoint]->Send(batch, completion);
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
  for (const auto& connection : connections_) {
    next = std::min(next, connection->Sweep(now));
  }
  return next;
}

}  // namespace expertmesh::router
