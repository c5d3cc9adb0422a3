// The local link of forward_stream.h.

#include <utility>
#include <vector>

#include "expert_service/api/forward_stream.h"
#include "services/core/log.h"
#include "services/wire/status_codec.h"

namespace expertmesh::expert {

void ForwardStream::BeginLink() {
  auto reader =
      std::make_shared<LinkReader>(link_, [this] { return ReadLink(); });
  if (const absl::Status started = reader->Start(); !started.ok()) {
    Log(LogLevel::kWarning, "shared memory is not used",
        {{"reason", started.message()}});
    return;
  }
  options_.links->Add(reader);
  {
    MutexLock lock(&mutex_);
    link_reader_ = std::move(reader);
  }
  link_->Accept();
}

bool ForwardStream::MayReadLink() {
  MutexLock lock(&mutex_);
  is_link_held_ = Unanswered() >= options_.max_batches;
  if (!is_link_held_ && !end_.has_value() && !finished_) return true;
  link_->HoldReading();
  return false;
}

bool ForwardStream::ReadLink() {
  const bool any = MayReadLink() && ReadBatch();
  if (link_->IsFull()) WriteLink();
  return any;
}

bool ForwardStream::ReadBatch() {
  const LocalLink::Received received = link_->Read(&link_incoming_);
  if (received == LocalLink::Received::kNothing) return false;
  absl::Status taken =
      absl::InvalidArgumentError("the shared memory is in disorder");
  ForwardBatch* batch = nullptr;
  if (received == LocalLink::Received::kMessage) {
    {
      MutexLock lock(&mutex_);
      batch = TakeFree();
      batch->came_by_link_ = true;
    }
    taken = Take(link_incoming_, batch);
    link_incoming_.Clear();
  }
  if (taken.ok()) return true;
  EndWith(ToGrpcStatus(taken), When::kAtOnce);
  std::shared_ptr<ForwardStream> reference;
  MutexLock lock(&mutex_);
  if (batch != nullptr) reference = Recycle(batch);
  return true;
}

void ForwardStream::WriteLink() {
  {
    MutexLock lock(&mutex_);
    if (is_link_being_written_) return;
    is_link_being_written_ = true;
  }
  // References to this stream, dropped last.
  std::vector<std::shared_ptr<ForwardStream>> references;
  while (true) {
    const grpc::ByteBuffer* begun = nullptr;
    {
      MutexLock lock(&mutex_);
      if (link_writing_ == nullptr) {
        link_writing_ = link_replies_.Pop();
        is_link_being_written_ = link_writing_ != nullptr;
        if (!is_link_being_written_) break;
        begun = &link_writing_->reply();
      }
    }
    const bool is_written =
        begun != nullptr ? link_->Write(*begun) : link_->Resume();
    MutexLock lock(&mutex_);
    // The link's thread goes on as soon as there is room.
    is_link_being_written_ = is_written || !IsListening();
    if (!is_link_being_written_) break;
    if (!is_written) link_->Abandon();
    references.push_back(Recycle(std::exchange(link_writing_, nullptr)));
  }
  if (!references.empty()) GoOn();
}

void ForwardStream::EndLink() {
  std::shared_ptr<LinkReader> reader;
  {
    MutexLock lock(&mutex_);
    reader = std::move(link_reader_);
  }
  if (reader == nullptr) return;
  options_.links->Remove(reader.get());
  reader->Stop();
}

}  // namespace expertmesh::expert
