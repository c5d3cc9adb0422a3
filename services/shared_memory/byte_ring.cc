#include "services/shared_memory/byte_ring.h"

#include <algorithm>
#include <cstring>

namespace expertmesh {

// Positions are stored and loaded sequentially consistent: who stores one and
// then looks at a doorbell must not miss one armed before a look at this.

size_t RingWriter::Room() const {
  const uint64_t unread =
      at_.load(std::memory_order_relaxed) - memory_.words->read.load();
  return unread > memory_.capacity ? 0 : memory_.capacity - unread;
}

size_t RingWriter::Write(const std::byte* bytes, size_t size) {
  const uint64_t at = at_.load(std::memory_order_relaxed);
  const size_t count = std::min(size, Room());
  const size_t from = at & (memory_.capacity - 1);
  const size_t to_end = std::min(count, memory_.capacity - from);
  std::memcpy(memory_.bytes + from, bytes, to_end);
  std::memcpy(memory_.bytes, bytes + to_end, count - to_end);
  at_.store(at + count, std::memory_order_relaxed);
  return count;
}

bool RingReader::IsBroken() const {
  return memory_.words->written.load() - at_.load(std::memory_order_relaxed) >
         memory_.capacity;
}

size_t RingReader::Available() const {
  const uint64_t unread =
      memory_.words->written.load() - at_.load(std::memory_order_relaxed);
  return unread > memory_.capacity ? 0 : unread;
}

size_t RingReader::Read(std::byte* out, size_t size) {
  const uint64_t at = at_.load(std::memory_order_relaxed);
  const size_t count = std::min(size, Available());
  const size_t from = at & (memory_.capacity - 1);
  const size_t to_end = std::min(count, memory_.capacity - from);
  std::memcpy(out, memory_.bytes + from, to_end);
  std::memcpy(out + to_end, memory_.bytes, count - to_end);
  at_.store(at + count, std::memory_order_relaxed);
  memory_.words->read.store(at + count);
  return count;
}

}  // namespace expertmesh
