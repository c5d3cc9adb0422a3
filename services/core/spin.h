#pragma once

#include <thread>

namespace expertmesh {

// One turn of a loop that waits briefly for another thread. That thread may
// need this core: on a machine with fewer free cores than threads it gets it
// now and then.
inline void SpinTurn(int turn) {
  constexpr int kTurnsOnCore = 64;
  if (turn % kTurnsOnCore == kTurnsOnCore - 1) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace expertmesh
