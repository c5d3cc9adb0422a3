#pragma once

#include <grpcpp/completion_queue.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "router_service/transport/endpoint_connection.h"
#include "router_service/transport/expert_transport.h"
#include "router_service/transport/transport_metrics.h"
#include "router_service/transport/wake_timer.h"

namespace expertmesh::router {

// Sends batches over gRPC (stop 6): one channel and one Forward stream to each
// endpoint, many batches in flight on it, answers in any order.
//
// A batch is told OK, or its error, exactly once; its rows are not written
// after that. When a stream ends, its batches fail with UNAVAILABLE (INTERNAL
// when the endpoint broke the protocol) and the stream is opened again, after
// 50 ms at first and 2 s at most. Nothing is resent: dispatch knows where else
// a batch can go.
//
// Threads: Send from any; completions on the polling thread, the deadline
// timer or within Send. Steady traffic allocates nothing here.
class GrpcExpertTransport : public ExpertTransport {
 public:
  struct Options {
    std::vector<std::string> addresses;  // "host:port"; index = endpoint
    // An endpoint's stream opened (OK), or ended or failed to open (why).
    // Must not block; may be empty.
    std::function<void(int endpoint, const absl::Status&)> on_stream_change;
    TransportMetrics metrics;
  };

  explicit GrpcExpertTransport(Options options);
  // Fails what is in flight and waits until every completion was told.
  ~GrpcExpertTransport() override;

  // Begins to connect. Before it, batches fail. Called once.
  void Start();

  // Requires: 0 <= endpoint < number of addresses. Fails at once with
  // UNAVAILABLE while the endpoint's stream is not open.
  void Send(int endpoint, const ExpertBatch& batch,
            BatchCompletion* completion) override;

  // Rows sent to an endpoint and not answered.
  uint64_t inflight_rows(int endpoint) const {
    return connections_[endpoint]->inflight_rows();
  }

 private:
  void Poll();
  absl::Duration Sweep(absl::Duration now);

  grpc::CompletionQueue queue_;
  std::vector<std::unique_ptr<EndpointConnection>> connections_;
  std::unique_ptr<WakeTimer> timer_;
  std::thread poller_;
};

}  // namespace expertmesh::router
