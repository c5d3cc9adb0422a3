#include "services/shared_memory/doorbell.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace expertmesh {

// Not the private forms: the word is found by its memory, not its address.

void Doorbell::Ring() {
  if (word_->load() == kArmed && word_->exchange(kDisarmed) == kArmed) {
    RingAll();
  }
}

void Doorbell::RingAll() {
  word_->store(kDisarmed);
  syscall(SYS_futex, word_, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Doorbell::Wait() {
  syscall(SYS_futex, word_, FUTEX_WAIT, kArmed, nullptr, nullptr, 0);
}

}  // namespace expertmesh
