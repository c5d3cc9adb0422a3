#pragma once

// Memory for what is read all the time and changes seldom, in huge pages.

#include <cstddef>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "services/core/mutex.h"

namespace expertmesh {

// Gives out pieces of blocks that the system is asked to back with huge pages:
// weights that are read once per token would otherwise miss the TLB on every
// 4 KiB. Pieces next to each other are joined again when they are freed; huge
// pages without a piece, and then blocks, go back to the system. Thread-safe.
class HugePageArena {
 public:
  static constexpr size_t kBlockBytes = size_t{32} << 20;

  // The process's own, which is never destroyed.
  static HugePageArena& Shared();

  HugePageArena() = default;
  ~HugePageArena();  // every piece is freed before
  HugePageArena(const HugePageArena&) = delete;
  HugePageArena& operator=(const HugePageArena&) = delete;

  // `bytes`, 64-byte aligned, uninitialised. The arena must outlive them.
  // Throws std::bad_alloc where memory ends, as operator new does.
  std::shared_ptr<std::byte> Allocate(size_t bytes);

  // Of all blocks.
  size_t size_bytes() const;

 private:
  using Pieces = std::map<size_t, size_t>;  // bytes by offset
  struct Block {
    size_t bytes = 0;
    Pieces free;
  };
  using Blocks = std::map<std::byte*, Block>;

  // Null: no block has so much in one piece.
  std::byte* Take(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddBlock(size_t least_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Free(std::byte* piece, size_t bytes);

  mutable Mutex mutex_;
  Blocks blocks_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertmesh
