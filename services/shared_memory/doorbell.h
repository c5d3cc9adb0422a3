#pragma once

#include <atomic>
#include <cstdint>

namespace expertmesh {

// Wakes a process that waits for something in shared memory. The waiting side
// arms it, looks once more whether there is anything, and then waits; the other
// side writes what there is, and then rings. So ringing costs a system call
// only where somebody sleeps.
//
// On the waiting side several threads may look in turn: whoever is looking
// disarms it, and arms it and looks again before leaving. Thread-safe, across
// processes.
class Doorbell {
 public:
  // In shared memory, zero at first: disarmed.
  using Word = std::atomic<uint32_t>;
  static_assert(Word::is_always_lock_free);

  explicit Doorbell(Word* word) : word_(word) {}

  void Ring();
  // As Ring, but also where a thread sleeps behind a bell that another
  // disarmed.
  void RingAll();
  void Arm() { word_->store(kArmed); }
  void Disarm() { word_->store(kDisarmed, std::memory_order_relaxed); }
  // Until it is rung, for about a second at most, or for no reason: a peer that
  // arms it again and again must not keep a thread here.
  void Wait();

 private:
  static constexpr uint32_t kDisarmed = 0;
  static constexpr uint32_t kArmed = 1;
  Word* const word_;
};

}  // namespace expertmesh
