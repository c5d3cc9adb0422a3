#include "services/wire/payload_pool.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <new>

#include "services/core/mutex.h"

namespace expertmesh {
namespace {

constexpr size_t kAlignment = 64;
// Blocks come in powers of two from this one on.
constexpr size_t kMinBlockBytes = 1024;
constexpr int kNumClasses = 40;

int ClassOf(size_t size) {
  const size_t bytes = std::bit_ceil(std::max(size, kMinBlockBytes));
  return std::countr_zero(bytes) - std::countr_zero(kMinBlockBytes);
}

size_t ClassBytes(int size_class) { return kMinBlockBytes << size_class; }

}  // namespace

// Sits in front of its buffer, so that a buffer is one allocation.
struct alignas(kAlignment) PayloadBlock {
  std::atomic<int32_t> references{1};
  int size_class = 0;
  size_t size = 0;
  // Set while the buffer is out, empty while it waits in the pool: otherwise
  // the pool would keep itself alive.
  std::shared_ptr<PayloadPoolState> pool;
  PayloadBlock* next_free = nullptr;

  std::byte* data() { return reinterpret_cast<std::byte*>(this + 1); }

  static PayloadBlock* New(int size_class) {
    void* memory =
        ::operator new (sizeof(PayloadBlock) + ClassBytes(size_class),
                        std::align_val_t{kAlignment});
    auto* block = new (memory) PayloadBlock;
    block->size_class = size_class;
    return block;
  }

  static void Delete(PayloadBlock* block) {
    block->~PayloadBlock();
    ::operator delete (block, std::align_val_t{kAlignment});
  }
};

struct PayloadPoolState {
  explicit PayloadPoolState(size_t max_idle) : max_idle_bytes(max_idle) {}

  const size_t max_idle_bytes;
  Mutex mutex;
  std::array<PayloadBlock*, kNumClasses> free ABSL_GUARDED_BY(mutex) = {};
  size_t idle_bytes ABSL_GUARDED_BY(mutex) = 0;

  ~PayloadPoolState() {
    for (PayloadBlock* block : free) {
      while (block != nullptr) {
        PayloadBlock::Delete(std::exchange(block, block->next_free));
      }
    }
  }

  PayloadBlock* Take(int size_class) {
    MutexLock lock(&mutex);
    PayloadBlock* block = free[size_class];
    if (block == nullptr) return nullptr;
    free[size_class] = block->next_free;
    idle_bytes -= ClassBytes(size_class);
    return block;
  }

  // False when the pool keeps enough already; the caller still owns `block`.
  bool Put(PayloadBlock* block) {
    const size_t bytes = ClassBytes(block->size_class);
    MutexLock lock(&mutex);
    if (idle_bytes + bytes > max_idle_bytes) return false;
    idle_bytes += bytes;
    block->next_free = free[block->size_class];
    free[block->size_class] = block;
    return true;
  }
};

namespace {

void Unref(PayloadBlock* block) {
  if (block->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  // Keeps the pool alive until its mutex is let go of.
  const std::shared_ptr<PayloadPoolState> pool = std::move(block->pool);
  if (!pool->Put(block)) PayloadBlock::Delete(block);
}

}  // namespace

PayloadRef::PayloadRef(const PayloadRef& other) : block_(other.block_) {
  if (block_ != nullptr) {
    block_->references.fetch_add(1, std::memory_order_relaxed);
  }
}

PayloadRef::~PayloadRef() {
  if (block_ != nullptr) Unref(block_);
}

std::byte* PayloadRef::data() const {
  return block_ == nullptr ? nullptr : block_->data();
}

size_t PayloadRef::size() const { return block_ == nullptr ? 0 : block_->size; }

PayloadPool::PayloadPool(size_t max_idle_bytes)
    : state_(std::make_shared<PayloadPoolState>(max_idle_bytes)) {}
PayloadPool::~PayloadPool() = default;

size_t PayloadPool::idle_bytes() const {
  MutexLock lock(&state_->mutex);
  return state_->idle_bytes;
}

PayloadRef PayloadPool::Acquire(size_t size) {
  const int size_class = ClassOf(size);
  PayloadBlock* block = state_->Take(size_class);
  if (block == nullptr) block = PayloadBlock::New(size_class);
  block->references.store(1, std::memory_order_relaxed);
  block->size = size;
  block->pool = state_;
  return PayloadRef(block);
}

}  // namespace expertmesh
