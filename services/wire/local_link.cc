#include "services/wire/local_link.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "services/core/status_macros.h"
#include "services/wire/batch_codec.h"

namespace expertmesh {
namespace {

// Of each direction. The replies to a part of a large prefill, some MiB, go
// through in one or two turns; memory is taken only as it is used.
constexpr size_t kRingBytes = size_t{4} << 20;

// Of buffers for messages read, of one end: there are as many ends as streams.
// Room for the replies to a part of a large prefill, which the pool rounds up.
constexpr size_t kMaxPooledBytes = 8 * kRingBytes;

// A slice around a pooled buffer, which it gives back in the end.
grpc::Slice SliceOf(PayloadRef payload) {
  const size_t size = payload.size();
  std::byte* data = payload.data();
  return grpc::Slice(
      data, size, [](void* released) { PayloadRef::Adopt(released); },
      payload.Release());
}

}  // namespace

// What is at the start of the memory; two rings of bytes follow. Of each pair
// the first is the creator's: its doorbell, the ring that it writes.
struct LocalLink::Words {
  std::atomic<uint32_t> is_opened;  // by one end, and by no other
  std::atomic<uint32_t> is_accepted;
  struct alignas(64) Bell {
    Doorbell::Word word;
  };
  Bell bells[2];
  RingWords rings[2];
};

size_t LocalLink::MemoryBytes() {
  static_assert(sizeof(Words) <= 4096);
  return 4096 + 2 * kRingBytes;
}

LocalLink::Words* LocalLink::words() const {
  return reinterpret_cast<Words*>(memory_.data());
}

RingMemory LocalLink::Ring(size_t index) const {
  return {&words()->rings[index], memory_.data() + 4096 + index * kRingBytes,
          kRingBytes};
}

LocalLink::LocalLink(SharedMemory memory, bool is_creator)
    : memory_(std::move(memory)),
      writer_(Ring(is_creator ? 0 : 1)),
      reader_(Ring(is_creator ? 1 : 0)),
      bell_(&words()->bells[is_creator ? 0 : 1].word),
      peer_bell_(&words()->bells[is_creator ? 1 : 0].word),
      pool_(kMaxPooledBytes) {}

absl::StatusOr<std::unique_ptr<LocalLink>> LocalLink::Create() {
  ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Create(MemoryBytes()));
  return std::unique_ptr<LocalLink>(
      new LocalLink(std::move(memory), /*is_creator=*/true));
}

absl::StatusOr<std::unique_ptr<LocalLink>> LocalLink::Open(
    absl::string_view offer) {
  ASSIGN_OR_RETURN(SharedMemory memory,
                   SharedMemory::Open(offer, MemoryBytes()));
  auto link = std::unique_ptr<LocalLink>(
      new LocalLink(std::move(memory), /*is_creator=*/false));
  if (link->words()->is_opened.exchange(1) != 0) {
    return absl::UnavailableError("opened by another already");
  }
  return link;
}

void LocalLink::Accept() { words()->is_accepted.store(1); }

bool LocalLink::IsAccepted() const { return words()->is_accepted.load() != 0; }

bool LocalLink::HasNews() const {
  if (is_blocked_.load() && writer_.Room() > 0) return true;
  return !is_reading_held_.load() && !is_garbage_.load() &&
         reader_.Available() > 0;
}

void LocalLink::GoOnReading() {
  is_reading_held_.store(false);
  bell_.RingAll();
}

// --- Writing. --------------------------------------------------------------

bool LocalLink::Write(const grpc::ByteBuffer& message) {
  if (!message.Dump(&slices_).ok()) slices_.clear();
  const uint64_t length = message.Length();
  slices_.insert(slices_.begin(), grpc::Slice(&length, sizeof(length)));
  slice_ = offset_ = 0;
  return Resume();
}

bool LocalLink::Resume() {
  bool is_done = WriteSome();
  if (!is_done) {
    // Said before the last look, so that room made after it rings our bell.
    is_blocked_.store(true);
    writer_.AskForRoom(true);
    is_done = WriteSome();
  }
  writer_.Publish();
  peer_bell_.Ring();
  if (!is_done) return false;
  if (is_blocked_.load()) {
    writer_.AskForRoom(false);
    is_blocked_.store(false);
  }
  slices_.clear();
  return true;
}

void LocalLink::Abandon() {
  slices_.clear();
  slice_ = offset_ = 0;
  writer_.AskForRoom(false);
  is_blocked_.store(false);
}

bool LocalLink::WriteSome() {
  while (slice_ < slices_.size()) {
    const grpc::Slice& slice = slices_[slice_];
    const size_t left = slice.size() - offset_;
    const size_t written = writer_.Write(
        reinterpret_cast<const std::byte*>(slice.begin()) + offset_, left);
    offset_ += written;
    if (written < left) return false;
    ++slice_;
    offset_ = 0;
  }
  return true;
}

// --- Reading. --------------------------------------------------------------

LocalLink::Received LocalLink::Read(grpc::ByteBuffer* message) {
  // Not looked at again: where its next message begins is not known.
  if (is_garbage_.load()) return Received::kGarbage;
  const Received received = ReadSome(message);
  if (received == Received::kGarbage) is_garbage_.store(true);
  if (reader_.IsRoomAskedFor()) peer_bell_.Ring();
  return received;
}

LocalLink::Received LocalLink::ReadSome(grpc::ByteBuffer* message) {
  if (reader_.Available() == 0) {
    return reader_.IsBroken() ? Received::kGarbage : Received::kNothing;
  }
  if (length_read_ < length_.size()) {
    length_read_ += reader_.Read(length_.data() + length_read_,
                                 length_.size() - length_read_);
    if (length_read_ < length_.size()) return Received::kNothing;
    uint64_t length;
    std::memcpy(&length, length_.data(), sizeof(length));
    if (length > kMaxMessageBytes) return Received::kGarbage;
    payload_ = pool_.Acquire(static_cast<size_t>(length));
  }
  payload_read_ += reader_.Read(payload_.data() + payload_read_,
                                payload_.size() - payload_read_);
  if (payload_read_ < payload_.size()) return Received::kNothing;
  const grpc::Slice slice = SliceOf(std::exchange(payload_, PayloadRef()));
  *message = grpc::ByteBuffer(&slice, 1);
  length_read_ = payload_read_ = 0;
  return Received::kMessage;
}

}  // namespace expertmesh
