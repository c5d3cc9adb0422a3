#pragma once

// A stream of bytes through shared memory, from one process to another.
//
// Neither side trusts the other: each keeps its own position to itself, takes
// the other's from the shared words, and finds the ring broken where the two
// cannot be. Every byte is copied out once, before anybody looks at it.

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace expertmesh {

// In shared memory, zero at first. Positions count bytes since the start.
struct RingWords {
  using Position = std::atomic<uint64_t>;
  static_assert(Position::is_always_lock_free);
  alignas(64) Position written;
  alignas(64) Position read;
  // Whether the writer wants to hear of room.
  std::atomic<uint32_t> is_full;
};

// The memory of a ring: its words and `capacity` bytes, a power of two.
struct RingMemory {
  RingWords* words = nullptr;
  std::byte* bytes = nullptr;
  size_t capacity = 0;
};

// Used by one thread at a time; Room by any.
class RingWriter {
 public:
  explicit RingWriter(const RingMemory& memory) : memory_(memory) {}

  // Copies as much of `bytes` as there is room for; the reader sees nothing of
  // it before Publish. Returns how much.
  size_t Write(const std::byte* bytes, size_t size);
  void Publish() { memory_.words->written.store(at_); }

  // Tells the reader whether to ring when it has made room. One that wants it
  // to looks for room once more after saying so.
  void AskForRoom(bool is_full) { memory_.words->is_full.store(is_full); }

  // Bytes that could be written; 0 as well where the ring is broken, which is
  // for its reader's side to find out.
  size_t Room() const;

 private:
  const RingMemory memory_;
  std::atomic<uint64_t> at_{0};
};

// Used by one thread at a time; Available by any.
class RingReader {
 public:
  explicit RingReader(const RingMemory& memory) : memory_(memory) {}

  // Copies up to `size` of the bytes that were published, and makes room for
  // others. Returns how many.
  size_t Read(std::byte* out, size_t size);
  // Whether the writer is to be told of room.
  bool IsRoomAskedFor() const { return memory_.words->is_full.load() != 0; }

  // Bytes that could be read; 0 as well where the ring is broken.
  size_t Available() const;
  bool IsBroken() const;

 private:
  const RingMemory memory_;
  std::atomic<uint64_t> at_{0};
};

}  // namespace expertmesh
