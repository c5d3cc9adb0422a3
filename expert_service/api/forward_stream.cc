#include "expert_service/api/forward_stream.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "services/wire/status_codec.h"

namespace expertmesh::expert {

ForwardStream::ForwardStream(const ForwardOptions& options,
                             std::shared_ptr<LocalLink> link,
                             std::function<void()> on_gone)
    : options_(options),
      on_gone_(std::move(on_gone)),
      queue_stream_(options.queue->OpenStream()),
      link_(std::move(link)) {}

ForwardStream::~ForwardStream() {
  options_.queue->CloseStream(queue_stream_);
  on_gone_();
}

void ForwardStream::Begin() {
  self_ = shared_from_this();
  if (link_ != nullptr) BeginLink();
  GoOn();
}

void ForwardStream::GoOn() {
  NextCall next;
  {
    MutexLock lock(&mutex_);
    next = Next();
  }
  Do(std::move(next));
}

void ForwardStream::End() {
  EndWith(grpc::Status(grpc::StatusCode::UNAVAILABLE,
                       "the expert service is shutting down"),
          When::kWhenAnswered);
}

void ForwardStream::OnReadDone(bool ok) {
  if (!ok) {  // the router has closed its side, or is gone: then OnCancel comes
    EndWith(grpc::Status::OK, When::kWhenAnswered);
    return;
  }
  ForwardBatch* batch = nullptr;
  {
    MutexLock lock(&mutex_);
    // Finished while this message was on its way: nobody waits for an answer.
    if (finished_) {
      reading_ = false;
      return;
    }
    batch = TakeFree();
  }
  const absl::Status taken = Take(incoming_, batch);
  incoming_.Clear();
  if (!taken.ok()) EndWith(ToGrpcStatus(taken), When::kAtOnce);
  NextCall next;
  std::shared_ptr<ForwardStream> reference;
  {
    MutexLock lock(&mutex_);
    reading_ = false;
    if (!taken.ok()) reference = Recycle(batch);
    next = Next();
  }
  Do(std::move(next));
}

absl::Status ForwardStream::Take(const grpc::ByteBuffer& message,
                                 ForwardBatch* batch) {
  const absl::Status decoded = batch->Decode(message);
  if (decoded.ok()) Accept(batch);
  return decoded;
}

void ForwardStream::Accept(ForwardBatch* batch) {
  absl::Status status = batch->Prepare(options_.shape);
  if (status.ok()) status = batch->TakeBytes(options_.bytes);
  if (status.ok()) status = options_.queue->Add(queue_stream_, batch);
  if (!status.ok()) batch->Finish(status, {}, {});
}

uint32_t ForwardStream::Settle(ForwardBatch* batch) {
  const int64_t rows = options_.queue->Settle(queue_stream_, batch);
  return static_cast<uint32_t>(std::min<int64_t>(rows, UINT32_MAX));
}

void ForwardStream::OnAnswer(ForwardBatch* batch, v1::Code code,
                             const absl::Status& encoded) {
  // Other threads may write the answer, and drop the batch's own, before this
  // one is through.
  const std::shared_ptr<ForwardStream> self = shared_from_this();
  if (options_.answers[code] != nullptr) options_.answers[code]->Increment();
  if (!encoded.ok()) EndWith(ToGrpcStatus(encoded), When::kAtOnce);
  bool is_for_link = false;
  NextCall next;
  std::shared_ptr<ForwardStream> reference;
  {
    MutexLock lock(&mutex_);
    if (!IsListening()) {
      reference = Recycle(batch);
    } else if (batch->came_by_link_) {
      link_replies_.Push(batch);
      is_for_link = true;
    } else {
      replies_.Push(batch);
    }
    next = Next();
  }
  Do(std::move(next));
  if (is_for_link) WriteLink();
}

void ForwardStream::OnWriteDone(bool ok) {
  if (!ok) {
    EndWith(grpc::Status(grpc::StatusCode::CANCELLED, "the router is gone"),
            When::kAtOnce);
  }
  NextCall next;
  std::shared_ptr<ForwardStream> reference;
  {
    MutexLock lock(&mutex_);
    reference = Recycle(std::exchange(writing_, nullptr));
    next = Next();
  }
  Do(std::move(next));
}

void ForwardStream::OnCancel() {
  EndWith(grpc::Status(grpc::StatusCode::CANCELLED, "the router is gone"),
          When::kAtOnce);
}

void ForwardStream::OnDone() {
  EndLink();
  self_.reset();
}

void ForwardStream::EndWith(const grpc::Status& status, When when) {
  const bool at_once = when == When::kAtOnce;
  // References to this stream, dropped last.
  std::vector<std::shared_ptr<ForwardStream>> references;
  std::vector<ExpertWork*> dropped;
  if (at_once) dropped = options_.queue->Remove(queue_stream_);
  NextCall next;
  {
    MutexLock lock(&mutex_);
    if (!end_.has_value() || (at_once && end_when_ != When::kAtOnce)) {
      end_ = status;
      end_when_ = when;
    }
    for (ExpertWork* work : dropped) {
      references.push_back(Recycle(static_cast<ForwardBatch*>(work)));
    }
    for (ReplyList* replies : {&replies_, &link_replies_}) {
      while (at_once && !replies->empty()) {
        references.push_back(Recycle(replies->Pop()));
      }
    }
    next = Next();
  }
  Do(std::move(next));
  // Takes back one that waits for room.
  if (at_once && link_ != nullptr) WriteLink();
}

void ForwardStream::ReplyList::Push(ForwardBatch* batch) {
  batch->next_reply_ = nullptr;
  (first_ == nullptr ? first_ : last_->next_reply_) = batch;
  last_ = batch;
}

ForwardBatch* ForwardStream::ReplyList::Pop() {
  ForwardBatch* batch = first_;
  if (batch != nullptr) first_ = batch->next_reply_;
  return batch;
}

ForwardBatch* ForwardStream::TakeFree() {
  if (free_.empty()) {
    batches_.push_back(std::make_unique<ForwardBatch>());
    free_.reserve(batches_.size());
    free_.push_back(batches_.back().get());
  }
  ForwardBatch* batch = free_.back();
  free_.pop_back();
  batch->stream_ = shared_from_this();
  return batch;
}

std::shared_ptr<ForwardStream> ForwardStream::Recycle(ForwardBatch* batch) {
  batch->decoded_.Release();
  batch->reply_.Clear();
  batch->GiveBytes(options_.bytes);
  batch->came_by_link_ = false;
  free_.push_back(batch);
  if (std::exchange(is_link_held_, false)) link_->GoOnReading();
  return std::exchange(batch->stream_, nullptr);
}

ForwardStream::NextCall ForwardStream::Next() {
  NextCall next;
  if (finished_) return next;
  if (end_.has_value()) {
    const bool due = end_when_ == When::kAtOnce || Unanswered() == 0;
    if (due && writing_ == nullptr && starting_reads_ == 0) {
      finished_ = true;
      next.finish = *end_;
      return next;
    }
  } else if (!reading_ && Unanswered() < options_.max_batches) {
    reading_ = true;
    ++starting_reads_;
    next.read = true;
  }
  if (writing_ == nullptr) next.write = writing_ = replies_.Pop();
  return next;
}

void ForwardStream::Do(NextCall next) {
  while (true) {
    if (next.write != nullptr) StartWrite(&next.write->reply());
    if (next.finish.has_value()) Finish(*next.finish);
    if (!next.read) return;
    StartRead(&incoming_);
    MutexLock lock(&mutex_);
    --starting_reads_;
    next = Next();
  }
}

}  // namespace expertmesh::expert
