// The local link of endpoint_connection.h.

#include <utility>

#include "router_service/transport/endpoint_connection.h"
#include "services/core/log.h"

namespace expertmesh::router {

void EndpointConnection::OfferLink() {
  if (options_.link_readers == nullptr) return;
  auto link = LocalLink::Create();
  if (!link.ok()) {
    Log(LogLevel::kDebug, "no shared memory to offer",
        {{"endpoint", options_.address}, {"reason", link.status().message()}});
    return;
  }
  link_ = *std::move(link);
  context_->AddMetadata(kLocalLinkMetadata, link_->Offer());
}

// Looked at before each batch, so that nothing waits for a peer that does not
// know of links. Those that went over the stream before are answered there.
void EndpointConnection::UseLinkIfAccepted() {
  if (link_ == nullptr || link_reader_ != nullptr || !link_->IsAccepted()) {
    return;
  }
  link_->Withdraw();
  auto reader = std::make_shared<LinkReader>(
      link_, [this, link = link_.get()] { return ReadLink(link); });
  if (const absl::Status started = reader->Start(); !started.ok()) {
    Log(LogLevel::kWarning, "shared memory is not used",
        {{"endpoint", options_.address}, {"reason", started.message()}});
    link_.reset();
    return;
  }
  link_reader_ = std::move(reader);
  options_.link_readers->Add(link_reader_);
  if (options_.shared_memory != nullptr) options_.shared_memory->Set(1);
  Log(LogLevel::kInfo, "expert service is reached by shared memory",
      {{"endpoint", options_.address}});
}

bool EndpointConnection::ReadLink(LocalLink* link) {
  bool any = ReadAnswer(link);
  MutexLock lock(&mutex_);
  if (is_link_full_ && link->Resume()) {
    is_link_full_ = false;
    if (state_ == State::kOpen && !is_writing_) WriteNext();
    any = true;
  }
  return any;
}

bool EndpointConnection::ReadAnswer(LocalLink* link) {
  const LocalLink::Received received = link->Read(&link_received_.message);
  if (received == LocalLink::Received::kNothing) return false;
  const absl::Status taken =
      received == LocalLink::Received::kMessage
          ? TakeAnswer(&link_received_)
          : absl::InternalError("left its shared memory in disorder");
  if (taken.ok()) return true;
  link->HoldReading();
  MutexLock lock(&mutex_);
  FailStream(taken);
  return false;
}

void EndpointConnection::EndLink() {
  std::shared_ptr<LinkReader> reader;
  std::shared_ptr<LocalLink> link;
  {
    MutexLock lock(&mutex_);
    reader = std::move(link_reader_);
    link = std::move(link_);
    is_link_full_ = false;
  }
  if (reader == nullptr) return;
  options_.link_readers->Remove(reader.get());
  reader->Stop();
  // The peer answers before it ends the stream. One that goes on for ever after
  // it has answered all is not listened to.
  while (inflight_rows() > 0 && ReadAnswer(link.get())) continue;
  if (options_.shared_memory != nullptr) options_.shared_memory->Set(0);
}

}  // namespace expertmesh::router
