#include "services/core/huge_page_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <new>

namespace expertmesh {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePageBytes = size_t{2} << 20;

size_t RoundUp(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// `bytes`, a multiple of kHugePageBytes, aligned to it.
std::byte* Map(size_t bytes) {
  const size_t with_slack = bytes + kHugePageBytes;
  void* const mapped = mmap(nullptr, with_slack, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* const first = static_cast<std::byte*>(mapped);
  auto* const begin = reinterpret_cast<std::byte*>(
      RoundUp(reinterpret_cast<uintptr_t>(first), kHugePageBytes));
  if (begin > first) munmap(first, begin - first);
  std::byte* const end = first + with_slack;
  if (end > begin + bytes) munmap(begin + bytes, end - (begin + bytes));
  // A wish: a system without huge pages gives others.
  madvise(begin, bytes, MADV_HUGEPAGE);
  return begin;
}

}  // namespace

HugePageArena& HugePageArena::Shared() {
  static auto* const arena = new HugePageArena;
  return *arena;
}

HugePageArena::~HugePageArena() {
  for (const auto& [memory, block] : blocks_) munmap(memory, block.bytes);
}

std::shared_ptr<std::byte> HugePageArena::Allocate(size_t bytes) {
  bytes = RoundUp(std::max<size_t>(bytes, 1), kAlignment);
  std::byte* piece = nullptr;
  {
    MutexLock lock(&mutex_);
    piece = Take(bytes);
    if (piece == nullptr) {
      AddBlock(bytes);
      piece = Take(bytes);
    }
  }
  return {piece, [this, bytes](std::byte* freed) { Free(freed, bytes); }};
}

std::byte* HugePageArena::Take(size_t bytes) {
  for (auto& [memory, block] : blocks_) {
    const auto piece =
        std::find_if(block.free.begin(), block.free.end(),
                     [&](const auto& own) { return own.second >= bytes; });
    if (piece == block.free.end()) continue;
    const auto [offset, length] = *piece;
    block.free.erase(piece);
    if (length > bytes) block.free[offset + bytes] = length - bytes;
    return memory + offset;
  }
  return nullptr;
}

void HugePageArena::AddBlock(size_t least_bytes) {
  const size_t bytes =
      std::max(kBlockBytes, RoundUp(least_bytes, kHugePageBytes));
  blocks_[Map(bytes)] = {bytes, {{0, bytes}}};
}

void HugePageArena::Free(std::byte* piece, size_t bytes) {
  MutexLock lock(&mutex_);
  const auto found = std::prev(blocks_.upper_bound(piece));
  auto& [memory, block] = *found;
  auto own = block.free.emplace(piece - memory, bytes).first;
  const auto next = std::next(own);
  if (next != block.free.end() && own->first + own->second == next->first) {
    own->second += next->second;
    block.free.erase(next);
  }
  if (own != block.free.begin()) {
    const auto previous = std::prev(own);
    if (previous->first + previous->second == own->first) {
      previous->second += own->second;
      block.free.erase(own);
      own = previous;
    }
  }
  if (own->second == block.bytes) {
    munmap(memory, block.bytes);
    blocks_.erase(found);
    return;
  }
  // Whole pages go back although their block stays.
  const size_t first = RoundUp(own->first, kHugePageBytes);
  const size_t last =
      (own->first + own->second) / kHugePageBytes * kHugePageBytes;
  if (first < last) madvise(memory + first, last - first, MADV_DONTNEED);
}

size_t HugePageArena::size_bytes() const {
  MutexLock lock(&mutex_);
  size_t bytes = 0;
  for (const auto& [memory, block] : blocks_) bytes += block.bytes;
  return bytes;
}

}  // namespace expertmesh
