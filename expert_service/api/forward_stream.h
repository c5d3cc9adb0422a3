#pragma once

// One router's Forward stream: its reactor.

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

namespace expertmesh::expert {

// What all streams of a service share.
struct ForwardOptions {
  ExpertQueue* queue = nullptr;  // outlives the streams
  ByteBudget* bytes = nullptr;   // so does it
  ModelShape shape;
  // Batches of one stream read and not yet answered; further ones stay in
  // gRPC's flow control, which is how a router feels that it is too fast.
  size_t max_batches = 64;
  // Answers by Code; null where not counted.
  std::array<prometheus::Counter*, v1::Code_ARRAYSIZE> answers = {};
};

// Reads while fewer than max_batches are unanswered, keeps one write under way,
// and ends
//   - with OK once the router has closed its side and all is answered;
//   - with INVALID_ARGUMENT at bytes that are no batch, dropping what waits;
//   - with UNAVAILABLE after End, once all is answered;
//   - when the router is gone, dropping what waits.
// gRPC's threads and the executor's come in concurrently; no method blocks.
// Alive until gRPC is done with it and no batch is under way.
class ForwardStream final
    : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
      public std::enable_shared_from_this<ForwardStream> {
 public:
  // `on_gone` runs last of all, from the destructor.
  ForwardStream(const ForwardOptions& options, std::function<void()> on_gone);
  ~ForwardStream() override;

  // Begins reading. Called once, after construction by make_shared.
  void Begin();
  // Answers what has been read, then ends the stream: the service shuts down.
  void End();

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

  ForwardBatch* TakeFree() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Back to the free ones. Returns the reference to this stream that it held,
  // for the caller to drop outside the critical section.
  std::shared_ptr<ForwardStream> Recycle(ForwardBatch* batch)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Accept(ForwardBatch* batch);
  // The first call decides the status; a later one may only hurry it.
  void EndWith(const grpc::Status& status, When when);
  NextCall Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(NextCall next);

  const ForwardOptions options_;
  const std::function<void()> on_gone_;
  ExpertQueue::Stream* const queue_stream_;
  grpc::ByteBuffer incoming_;  // of the read under way

  Mutex mutex_;
  std::vector<std::unique_ptr<ForwardBatch>> batches_ ABSL_GUARDED_BY(mutex_);
  std::vector<ForwardBatch*> free_ ABSL_GUARDED_BY(mutex_);
  ForwardBatch* first_reply_ ABSL_GUARDED_BY(mutex_) = nullptr;
  ForwardBatch* last_reply_ ABSL_GUARDED_BY(mutex_) = nullptr;
  ForwardBatch* writing_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;  // also while a batch is read
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  When end_when_ ABSL_GUARDED_BY(mutex_) = When::kWhenAnswered;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<ForwardStream> self_;  // until OnDone
};

}  // namespace expertmesh::expert
