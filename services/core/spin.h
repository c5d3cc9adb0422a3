#pragma once

#include <thread>

namespace expertmesh {

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
