#pragma once

// Reusable, reference-counted byte buffers that gRPC may hold on to.
//
// A message's payload is handed to gRPC without a copy; gRPC lets go of it at
// some later time, on some thread. So a buffer returns to its pool when the
// last reference goes, not when a write completes.

#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

namespace expertmesh {

class PayloadPool;
struct PayloadBlock;
struct PayloadPoolState;

// A shared reference to a pooled buffer. Copyable; the count is atomic. The
// buffer outlives its pool if need be.
class PayloadRef {
 public:
  PayloadRef() = default;
  PayloadRef(const PayloadRef& other);
  PayloadRef(PayloadRef&& other) noexcept
      : block_(std::exchange(other.block_, nullptr)) {}
  PayloadRef& operator=(PayloadRef other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~PayloadRef();

  explicit operator bool() const { return block_ != nullptr; }
  std::byte* data() const;  // 64-byte aligned
  size_t size() const;      // as asked for in Acquire

  // For C callbacks: gives the reference away, and takes it back.
  void* Release() { return std::exchange(block_, nullptr); }
  static PayloadRef Adopt(void* released) {
    return PayloadRef(static_cast<PayloadBlock*>(released));
  }

 private:
  friend class PayloadPool;
  explicit PayloadRef(PayloadBlock* block) : block_(block) {}
  PayloadBlock* block_ = nullptr;
};

// Thread-safe. Steady traffic allocates nothing.
class PayloadPool {
 public:
  // Buffers are kept for reuse while they have at most `max_idle_bytes`
  // together.
  explicit PayloadPool(size_t max_idle_bytes = size_t{256} << 20);
  ~PayloadPool();

  PayloadPool(const PayloadPool&) = delete;
  PayloadPool& operator=(const PayloadPool&) = delete;

  // A buffer of at least `size` bytes, contents undefined.
  PayloadRef Acquire(size_t size);

  // Of the buffers kept for reuse.
  size_t idle_bytes() const;

 private:
  friend class PayloadRef;
  std::shared_ptr<PayloadPoolState> state_;
};

}  // namespace expertmesh
