#include "tests/support/cuda_emulation/block.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "tests/support/cuda_emulation/context.h"
#include "tests/support/cuda_emulation/cuda_runtime.h"

namespace expertmesh::cuda_emulation {
namespace {

// Sanitizers make frames several times as large.
constexpr size_t kStackBytes = 256 << 10;

using Meet = void (*)(void* const* lanes);

struct Thread {
  Context context;
  std::unique_ptr<std::byte[]> stack;
  uint3 index = {0, 0, 0};
  int warp = 0;
  int lane = 0;
};

struct Warp {
  int waiting = 0;
  Meet meet = nullptr;
  void* brought[kWarpSize] = {};
};

struct AlignedDelete {
  void operator()(std::byte* p) const {
    ::operator delete (p, std::align_val_t{128});
  }
};

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "cuda emulation: block (%u, %u, %u): %s\n", blockIdx.x,
               blockIdx.y, blockIdx.z, what);
  std::abort();
}

class Block {
 public:
  void Run(const Extent& grid, const Extent& block, size_t shared_bytes,
           const std::function<void()>& kernel);

  void WaitForBlock(const char* file, int line);
  void WaitForWarp(Meet meet, void* brought);

  int lane() const { return running_->lane; }
  std::byte* shared() const { return shared_.get(); }

 private:
  static void ThreadMain();

  void MakeThreads(const Extent& block);
  void RunOne();
  // Gives the processor away; returns once the thread is in ready_ again.
  void Wait() { SwitchContext(running_->context, scheduler_); }
  void DieOfDeadlock() const;

  std::vector<std::unique_ptr<Thread>> threads_;  // grows, stacks are kept
  std::vector<Warp> warps_;
  std::unique_ptr<std::byte[], AlignedDelete> shared_;
  const std::function<void()>* kernel_ = nullptr;
  Context scheduler_;
  std::deque<Thread*> ready_;
  std::vector<Thread*> at_barrier_;
  const char* barrier_file_ = nullptr;
  int barrier_line_ = 0;
  Thread* running_ = nullptr;
  int count_ = 0;  // threads of a block
  int done_ = 0;
};

Block& TheBlock() {
  static Block block;
  return block;
}

void Block::ThreadMain() {
  Block& block = TheBlock();
  while (true) {  // once for each block
    (*block.kernel_)();
    ++block.done_;
    block.Wait();
  }
}

void Block::MakeThreads(const Extent& block) {
  count_ = static_cast<int>(block.x * block.y * block.z);
  if (count_ % kWarpSize != 0) Die("the block has a part of a warp");
  while (static_cast<int>(threads_.size()) < count_) {
    auto thread = std::make_unique<Thread>();
    thread->stack.reset(new std::byte[kStackBytes]);
    PrepareContext(thread->stack.get(), kStackBytes, &ThreadMain,
                   thread->context);
    threads_.push_back(std::move(thread));
  }
  for (int i = 0; i < count_; ++i) {
    const auto at = static_cast<unsigned>(i);
    threads_[i]->index = {at % block.x, at / block.x % block.y,
                          at / block.x / block.y};
    threads_[i]->warp = i / kWarpSize;
    threads_[i]->lane = i % kWarpSize;
  }
  warps_.assign(count_ / kWarpSize, Warp{});
}

void Block::Run(const Extent& grid, const Extent& block, size_t shared_bytes,
                const std::function<void()>& kernel) {
  kernel_ = &kernel;
  MakeThreads(block);
  // Of the exact size, so that the address sanitizer sees its ends.
  shared_.reset(static_cast<std::byte*>(
      ::operator new (shared_bytes, std::align_val_t{128})));
  gridDim = dim3(grid.x, grid.y, grid.z);
  blockDim = dim3(block.x, block.y, block.z);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        std::memset(shared_.get(), 0xff, shared_bytes);
        RunOne();
      }
    }
  }
  shared_.reset();
}

void Block::RunOne() {
  done_ = 0;
  for (int i = 0; i < count_; ++i) ready_.push_back(threads_[i].get());
  while (!ready_.empty()) {
    running_ = ready_.front();
    ready_.pop_front();
    threadIdx = running_->index;
    SwitchContext(scheduler_, running_->context);
  }
  if (done_ != count_) DieOfDeadlock();
}

void Block::WaitForBlock(const char* file, int line) {
  if (!at_barrier_.empty() &&
      (line != barrier_line_ || std::strcmp(file, barrier_file_) != 0)) {
    Die("threads meet at different barriers");
  }
  barrier_file_ = file;
  barrier_line_ = line;
  at_barrier_.push_back(running_);
  if (static_cast<int>(at_barrier_.size()) == count_) {
    ready_.insert(ready_.end(), at_barrier_.begin(), at_barrier_.end());
    at_barrier_.clear();
  }
  Wait();
}

void Block::WaitForWarp(Meet meet, void* brought) {
  Warp& warp = warps_[running_->warp];
  if (warp.waiting > 0 && warp.meet != meet) {
    Die("lanes of one warp do different things together");
  }
  warp.meet = meet;
  warp.brought[running_->lane] = brought;
  if (++warp.waiting == kWarpSize) {
    warp.waiting = 0;
    meet(warp.brought);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      ready_.push_back(threads_[running_->warp * kWarpSize + lane].get());
    }
  }
  Wait();
}

void Block::DieOfDeadlock() const {
  char what[512];
  int waiting_lanes = 0;
  for (const Warp& warp : warps_) waiting_lanes += warp.waiting;
  std::snprintf(what, sizeof(what),
                "deadlock: %d threads are done, %d wait for their warp, %zu at "
                "the barrier %s:%d",
                done_, waiting_lanes, at_barrier_.size(),
                at_barrier_.empty() ? "" : barrier_file_,
                at_barrier_.empty() ? 0 : barrier_line_);
  Die(what);
}

}  // namespace

void RunBlocks(const Extent& grid, const Extent& block, size_t shared_bytes,
               const std::function<void()>& kernel) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  TheBlock().Run(grid, block, shared_bytes, kernel);
}

std::byte* DynamicShared() { return TheBlock().shared(); }
void MeetBlock(const char* file, int line) {
  TheBlock().WaitForBlock(file, line);
}
void MeetWarp(Meet meet, void* brought) {
  TheBlock().WaitForWarp(meet, brought);
}
int Lane() { return TheBlock().lane(); }

void CheckAligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    Die("an access is not aligned");
  }
}

}  // namespace expertmesh::cuda_emulation
