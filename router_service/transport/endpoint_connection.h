#pragma once

// One endpoint's channel, its Forward stream, and the local link beside it
// where the endpoint is on this host (stop 6).

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router_service/transport/channel.h"
#include "router_service/transport/expert_transport.h"
#include "router_service/transport/in_flight_table.h"
#include "services/core/mutex.h"
#include "services/wire/batch_codec.h"
#include "services/wire/link_readers.h"
#include "services/wire/local_link.h"

namespace expertmesh::router {

// Keeps one Forward stream to `address` open, carries batches over it, and
// opens it again when it ends. Each stream offers a local link; once the
// endpoint has accepted it, batches go over the link, and end with the stream
// all the same (endpoint_connection_link.cc). Driven from outside: OnEvent by
// the one thread that polls `queue`, Sweep by a timer; Send by anybody.
// Completions are told without any lock held that Send needs.
class EndpointConnection {
 public:
  enum class Event { kStarted, kRead, kWritten, kFinished };
  struct Tag {
    EndpointConnection* connection;
    Event event;
  };

  struct Options {
    std::string address;
    // The stream opened (OK), or ended or failed to open (why). Told in order,
    // on the polling thread; must not block.
    std::function<void(const absl::Status&)> on_change;
    // Asks for a Sweep at a time of Clock::Real(), or before.
    std::function<void(absl::Duration)> wake_by;
    prometheus::Histogram* rpc_duration_seconds = nullptr;
    prometheus::Gauge* inflight_rows = nullptr;
    prometheus::Counter* row_seconds = nullptr;  // inflight_rows by time
    prometheus::Gauge* credit_rows = nullptr;    // as last granted
    prometheus::Gauge* shared_memory = nullptr;  // 1 while a link is in use
    prometheus::Counter* sent_bytes = nullptr;
    prometheus::Counter* received_bytes = nullptr;
    // Of this process; null: streams offer no link. Outlives this.
    LinkReaders* link_readers = nullptr;
    const ExpertTls* tls = nullptr;  // null: plain
  };

  // `queue` must outlive this. Does nothing until the first Sweep.
  EndpointConnection(Options options, grpc::CompletionQueue* queue);

  void Send(const ExpertBatch& batch, BatchCompletion* completion);

  void OnEvent(Event event, bool ok);

  // Opens the stream if that is due and fails batches whose time is over.
  // Returns when it wants to be called again.
  absl::Duration Sweep(absl::Duration now);

  // Ends the stream for good as soon as no batch is in flight; until then it
  // carries batches as before. Also where it is closed already.
  void Leave();
  // Whether the stream was ended for good and nothing is left of it: no event
  // of this is in `queue`, and nothing is counted any more.
  bool IsGone() const;

  // Ends the stream and refuses new batches for good; batches in flight fail.
  // Returns when no event of this is in `queue` any more, which must be polled
  // until then.
  void Shutdown();

  uint64_t inflight_rows() const {
    return inflight_rows_.load(std::memory_order_relaxed);
  }

 private:
  enum class State { kClosed, kOpening, kOpen, kClosing };

  // An answer being read, and its rows; reused.
  struct Incoming final : AnsweredRows {
    void Copy(size_t first, size_t last, std::byte* out) const override {
      result.CopyBytes(first * row_bytes, (last - first) * row_bytes, out);
    }
    void CopySum(size_t sum, std::byte* out) const override {
      result.CopySum(sum, out);
    }
    grpc::ByteBuffer message;
    DecodedResult result;
    size_t row_bytes = 0;
  };

  void Open() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void BeginClose() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Enqueue(const ExpertBatch& batch, BatchCompletion* completion,
                       absl::Duration now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CountRows() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `rows` were in flight since the last call.
  void CountRowSeconds(uint64_t rows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndIfIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void OnStarted(bool ok);
  void OnRead(bool ok);
  void OnWritten(bool ok);
  void OnFinished();
  void Close();
  // Takes the message apart and tells its batch. Not OK: the stream must end.
  absl::Status TakeAnswer(Incoming* incoming);
  BatchAnswer Answer(const InFlightBatch& batch, Incoming* incoming);
  // The read under way then finds the stream ended.
  void FailStream(const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Tell(const InFlightBatch& batch, const BatchAnswer& answer);

  void OfferLink() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UseLinkIfAccepted() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Called by its reader, one at a time. Returns whether there was anything.
  bool ReadLink(LocalLink* link);
  // Takes one answer. Returns whether there was one, and it was in order.
  bool ReadAnswer(LocalLink* link);
  // Takes what has come over the link, the last of its uses.
  void EndLink();

  // The status with the endpoint's name in front.
  absl::Status Named(const absl::Status& status) const;

  const Options options_;
  grpc::CompletionQueue* const queue_;
  grpc::GenericStub stub_;
  Tag started_{this, Event::kStarted};
  Tag read_{this, Event::kRead};
  Tag written_{this, Event::kWritten};
  Tag finished_{this, Event::kFinished};

  mutable Mutex mutex_;
  CondVar closed_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kClosed;
  bool is_leaving_ ABSL_GUARDED_BY(mutex_) = false;
  bool shutdown_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_finished_ ABSL_GUARDED_BY(mutex_) = false;
  InFlightTable in_flight_ ABSL_GUARDED_BY(mutex_);
  // Sequence numbers waiting to be written: [next_write_, size).
  std::vector<uint64_t> write_queue_ ABSL_GUARDED_BY(mutex_);
  size_t next_write_ ABSL_GUARDED_BY(mutex_) = 0;
  // Offered with the stream; read once it is in use. The reader goes first.
  std::shared_ptr<LocalLink> link_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<LinkReader> link_reader_ ABSL_GUARDED_BY(mutex_);
  bool is_link_full_ ABSL_GUARDED_BY(mutex_) = false;
  // Exist while state_ is not kClosed.
  std::optional<grpc::ClientContext> context_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_
      ABSL_GUARDED_BY(mutex_);
  absl::Duration opened_at_ ABSL_GUARDED_BY(mutex_);
  absl::Duration open_next_ ABSL_GUARDED_BY(mutex_) = absl::ZeroDuration();
  absl::Duration delay_ ABSL_GUARDED_BY(mutex_) = kMinReconnectDelay;
  // Why the stream is not open; its end's reason when that is ours.
  absl::Status last_error_ ABSL_GUARDED_BY(mutex_);
  absl::Status own_error_ ABSL_GUARDED_BY(mutex_);

  std::atomic<uint64_t> inflight_rows_{0};
  absl::Duration counted_at_ ABSL_GUARDED_BY(mutex_);  // by CountRowSeconds

  // Of the polling thread, and of gRPC between a start and its event.
  Incoming received_;
  grpc::Status status_;
  std::vector<InFlightBatch> lost_;
  // Of whoever reads the link.
  Incoming link_received_;
  // Of the timer's thread.
  std::vector<InFlightBatch> expired_;
};

}  // namespace expertmesh::router
