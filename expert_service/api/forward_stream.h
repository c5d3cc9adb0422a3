#pragma once

// One router's Forward stream: its reactor, and the local link beside it where
// the router is on this host.

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>
#include <prometheus/counter.h>

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "expert_service/api/byte_budget.h"
#include "expert_service/api/forward_batch.h"
#include "expert_service/batching/expert_queue.h"
#include "services/core/mutex.h"
#include "services/trace/trace_file.h"
#include "services/wire/link_readers.h"
#include "services/wire/local_link.h"

namespace expertmesh::expert {

// What all streams of a service share.
struct ForwardOptions {
  ExpertQueue* queue = nullptr;  // outlives the streams
  ByteBudget* bytes = nullptr;   // so does it
  LinkReaders* links = nullptr;  // so do they; null: none are opened
  ModelShape shape;
  // Batches of one stream read and not yet answered; further ones stay in
  // gRPC's flow control, which is how a router feels that it is too fast.
  size_t max_batches = 64;
  TraceFile* traces = nullptr;  // of sampled batches; outlives the streams
  // Answers by Code; null where not counted.
  std::array<prometheus::Counter*, v1::Code_ARRAYSIZE> answers = {};
};

// Reads while fewer than max_batches are unanswered, keeps one write under way,
// answers what came by the link by the link (forward_stream_link.cc), and ends
//   - with OK once the router has closed its side and all is answered;
//   - with INVALID_ARGUMENT at bytes that are no batch, dropping what waits;
//   - with UNAVAILABLE after End, once all is answered;
//   - when the router is gone, dropping what waits.
// gRPC's threads, the link's and the executor's come in concurrently; no method
// blocks.
// Alive until gRPC is done with it and no batch is under way.
class ForwardStream final
    : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
      public std::enable_shared_from_this<ForwardStream> {
 public:
  // `on_gone` runs last of all, from the destructor. `link` may be null.
  ForwardStream(const ForwardOptions& options, std::shared_ptr<LocalLink> link,
                std::function<void()> on_gone);
  ~ForwardStream() override;

  // Begins reading. Called once, after construction by make_shared.
  void Begin();
  // Answers what has been read, then ends the stream: the service shuts down.
  void End();

  // Where spans of batches go; null: nowhere.
  TraceFile* traces() const { return options_.traces; }

  // A batch is about to be answered: the rows this stream may have unanswered
  // from now on.
  uint32_t Settle(ForwardBatch* batch);
  // A batch's answer is encoded, unless `encoded` says otherwise.
  void OnAnswer(ForwardBatch* batch, v1::Code code,
                const absl::Status& encoded);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // What to ask of gRPC after leaving the critical section: its calls may come
  // back into this object.
  struct NextCall {
    ForwardBatch* write = nullptr;
    bool read = false;
    std::optional<grpc::Status> finish;
  };
  enum class When { kAtOnce, kWhenAnswered };

  // Batches that are answered and wait to be written.
  class ReplyList {
   public:
    void Push(ForwardBatch* batch);
    ForwardBatch* Pop();  // null: none
    bool empty() const { return first_ == nullptr; }

   private:
    ForwardBatch* first_ = nullptr;
    ForwardBatch* last_ = nullptr;
  };

  size_t Unanswered() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return batches_.size() - free_.size();
  }
  bool IsListening() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !finished_ && (!end_.has_value() || end_when_ != When::kAtOnce);
  }
  ForwardBatch* TakeFree() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Back to the free ones. Returns the reference to this stream that it held,
  // for the caller to drop outside the critical section.
  std::shared_ptr<ForwardStream> Recycle(ForwardBatch* batch)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Not OK: these bytes are no batch, and the stream must end.
  absl::Status Take(const grpc::ByteBuffer& message, ForwardBatch* batch);
  void Accept(ForwardBatch* batch);
  // Asks gRPC for what is due.
  void GoOn();

  // Where the link cannot be read, the router is left to the stream.
  void BeginLink();
  // Called by its reader, one at a time. Returns whether there was anything.
  bool ReadLink();
  // Takes one batch. Returns whether there was anything.
  bool ReadBatch();
  // Whether the link may be read; else it is held.
  bool MayReadLink() ABSL_LOCKS_EXCLUDED(mutex_);
  // Writes what waits, unless another thread does already: it sees to it.
  void WriteLink() ABSL_LOCKS_EXCLUDED(mutex_);
  void EndLink();

  // The first call decides the status; a later one may only hurry it.
  void EndWith(const grpc::Status& status, When when);
  // What it returns must be given to Do.
  NextCall Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(NextCall next);

  const ForwardOptions options_;
  const std::function<void()> on_gone_;
  ExpertQueue::Stream* const queue_stream_;
  grpc::ByteBuffer incoming_;  // of the read under way

  Mutex mutex_;
  std::vector<std::unique_ptr<ForwardBatch>> batches_ ABSL_GUARDED_BY(mutex_);
  std::vector<ForwardBatch*> free_ ABSL_GUARDED_BY(mutex_);
  ReplyList replies_ ABSL_GUARDED_BY(mutex_);
  ForwardBatch* writing_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;  // also while a batch is read
  // Reads decided on and not yet asked of gRPC: the call must not end before.
  int starting_reads_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  When end_when_ ABSL_GUARDED_BY(mutex_) = When::kWhenAnswered;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<ForwardStream> self_;  // until OnDone

  const std::shared_ptr<LocalLink> link_;  // null: none
  grpc::ByteBuffer link_incoming_;         // of its reader
  std::shared_ptr<LinkReader> link_reader_ ABSL_GUARDED_BY(mutex_);
  ReplyList link_replies_ ABSL_GUARDED_BY(mutex_);
  ForwardBatch* link_writing_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool is_link_being_written_ ABSL_GUARDED_BY(mutex_) = false;
  // Not read, for too many batches are unanswered.
  bool is_link_held_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace expertmesh::expert
