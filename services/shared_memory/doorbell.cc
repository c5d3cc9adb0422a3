#include "services/shared_memory/doorbell.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
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
  const struct timespec at_most = {.tv_sec = 1, .tv_nsec = 0};
  syscall(SYS_futex, word_, FUTEX_WAIT, kArmed, &at_most, nullptr, 0);
}

}  // namespace expertmesh
