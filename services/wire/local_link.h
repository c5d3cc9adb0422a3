#pragma once

// Messages between two processes of one host, through shared memory (stop 6).

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/shared_memory/byte_ring.h"
#include "services/shared_memory/doorbell.h"
#include "services/shared_memory/shared_memory.h"
#include "services/wire/payload_pool.h"

namespace expertmesh {

// Name of the call metadata that carries a link's offer.
inline constexpr char kLocalLinkMetadata[] = "expertmesh-local-link";

// One end of a link. The same messages as on a gRPC stream go both ways, in
// order and of any size up to kMaxMessageBytes: a ring for each direction, a
// message being 8 bytes of length and its bytes. Each end has a doorbell, which
// the other rings when there is something to read, or room again for a message
// that was too large.
//
// A link does not notice that its peer is gone: the gRPC stream beside it does.
//
// Threads: one may write, one may read, any may wait, at a time.
class LocalLink {
 public:
  // The end that creates the memory. Errors: UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<LocalLink>> Create();
  // The end that opens what the other offers; the first to do so is the only
  // one. Errors: UNAVAILABLE: it cannot be opened here, for the reason that is
  // said.
  static absl::StatusOr<std::unique_ptr<LocalLink>> Open(
      absl::string_view offer);

  LocalLink(const LocalLink&) = delete;
  LocalLink& operator=(const LocalLink&) = delete;

  // Of the end that created it.
  std::string Offer() const { return memory_.Offer(); }
  // Of the end that opened it, once it reads: the other may write.
  void Accept();
  // Whether the other end has accepted it: what is written will be read.
  bool IsAccepted() const;
  // Nobody else can open it any more.
  void Withdraw() { memory_.Withdraw(); }

  // Begins to write a message, whose slices are kept until it is written.
  // Returns whether all of it is; else Resume goes on, and requires no other
  // Write before it is done. Requires: no message is being written.
  bool Write(const grpc::ByteBuffer& message);
  // Writes more of the message, if there is room. Returns whether nothing of it
  // is left.
  bool Resume();

  // Gives up the message being written; nothing more may be written.
  void Abandon();

  enum class Received { kNothing, kMessage, kGarbage };
  // The next message, if all of it has come. After garbage there is nothing but
  // garbage, and no news of it any more.
  Received Read(grpc::ByteBuffer* message);

  // Whether a message waits for room. Any thread.
  bool IsFull() const { return is_blocked_.load(); }
  // Whether Read or Resume would find something to do. Any thread.
  bool HasNews() const;
  // While reading is held, what there is to read is no news. Any thread.
  void HoldReading() { is_reading_held_.store(true); }
  // Wakes whoever reads.
  void GoOnReading();

  // This end's; the other rings it.
  Doorbell& bell() { return bell_; }

 private:
  struct Words;
  LocalLink(SharedMemory memory, bool is_creator);
  static size_t MemoryBytes();
  RingMemory Ring(size_t index) const;
  Words* words() const;

  // Writes as much as there is room for; whether that was all.
  bool WriteSome();
  Received ReadSome(grpc::ByteBuffer* message);

  SharedMemory memory_;
  RingWriter writer_;
  RingReader reader_;
  Doorbell bell_;
  Doorbell peer_bell_;

  // Of the message being written.
  std::vector<grpc::Slice> slices_;
  size_t slice_ = 0;   // the first that is not written
  size_t offset_ = 0;  // into it
  std::atomic<bool> is_blocked_{false};

  // Of the message being read.
  std::array<std::byte, sizeof(uint64_t)> length_ = {};
  size_t length_read_ = 0;
  PayloadPool pool_;
  PayloadRef payload_;
  size_t payload_read_ = 0;
  std::atomic<bool> is_reading_held_{false};
  std::atomic<bool> is_garbage_{false};  // for good
};

}  // namespace expertmesh
