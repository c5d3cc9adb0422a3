#pragma once

#include <thread>

#include "absl/time/time.h"

namespace expertmesh {

// How long a thread that takes turns with others looks for its next work itself
// before it blocks. Longer than a layer of a large model takes, since being
// woken on every layer cost more than a tenth of a token's time; short enough
// that an idle service uses no CPU worth seeing. Measured in
// tests/bench/README.md.
inline constexpr absl::Duration kBriefWait = absl::Milliseconds(2);

// One turn of a loop that waits briefly for another thread. That thread may
// need this core: on a machine with fewer free cores than threads it gets it
// after so many turns.
inline void SpinTurn(int turn, int turns_on_core = 64) {
  if (turn % turns_on_core == turns_on_core - 1) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace expertmesh
