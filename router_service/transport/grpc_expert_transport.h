#pragma once

#include <grpcpp/completion_queue.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "router_service/transport/channel.h"
#include "router_service/transport/endpoint_connection.h"
#include "router_service/transport/expert_transport.h"
#include "router_service/transport/transport_metrics.h"
#include "router_service/transport/wake_timer.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Sends batches over gRPC (stop 6): one channel and one Forward stream to each
// endpoint, many batches in flight on it, answers in any order. To endpoints on
// this host the same messages go through shared memory. Endpoints come and go
// while it runs.
//
// A batch is told OK, or its error, exactly once. When a stream ends, its
// batches fail with UNAVAILABLE (INTERNAL when the endpoint broke the protocol)
// and the stream is opened again, after 50 ms at first and 2 s at most. Nothing
// is resent: dispatch knows where else a batch can go.
//
// Threads: all methods from any; completions on the polling thread, those of
// links, the deadline timer, or within Send and AwaitBriefly. Sending and
// answering allocate nothing in steady traffic.
class GrpcExpertTransport : public ExpertTransport {
 public:
  // Callbacks must not block; each may be empty.
  struct Options {
    // An endpoint's stream opened (OK), or ended or failed to open (why).
    std::function<void(int endpoint, const absl::Status&)> on_stream_change;
    // Nothing is left of an endpoint that was removed. On the timer's thread.
    std::function<void(int endpoint)> on_gone;
    // Whether endpoints on this host are offered shared memory.
    bool shared_memory = true;
    const ExpertTls* tls = nullptr;  // null: plain
    TransportMetrics metrics;
  };

  explicit GrpcExpertTransport(Options options);
  // Fails what is in flight and waits until every completion was told.
  ~GrpcExpertTransport() override;

  // Begins to connect to "host:port", a service of `pool`. Returns the
  // endpoint's index; no other ever has the same.
  // Requires: no endpoint with this address is here, not even a removed one
  // that is not gone yet.
  int Add(const std::string& pool, const std::string& address);

  // Closes the endpoint's stream for good, once nothing is in flight on it.
  void Remove(int endpoint);

  // Fails at once with UNAVAILABLE while the endpoint's stream is not open, and
  // for an endpoint that is gone.
  void Send(int endpoint, const ExpertBatch& batch,
            BatchCompletion* completion) override;

  bool AwaitBriefly(absl::FunctionRef<bool()> is_done) override {
    return link_readers_.AwaitBriefly(is_done);
  }

  // Rows sent to an endpoint and not answered.
  uint64_t inflight_rows(int endpoint) const;

 private:
  struct Peer {
    Peer(const TransportMetrics& metrics, const std::string& pool,
         EndpointConnection::Options options, grpc::CompletionQueue* queue);
    std::optional<EndpointSeries> series;
    EndpointConnection connection;
  };
  using Peers = std::map<int, std::shared_ptr<Peer>>;

  std::shared_ptr<Peer> Find(int endpoint) const;
  Peers AllPeers() const;
  void Poll();
  absl::Duration Sweep(absl::Duration now);
  void Drop(int endpoint, Peer* peer);

  const Options options_;
  grpc::CompletionQueue queue_;
  LinkReaders link_readers_;
  std::atomic<int> next_endpoint_{0};
  mutable Mutex mutex_;
  Peers peers_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<WakeTimer> timer_;
  std::thread poller_;
};

}  // namespace expertmesh::router
