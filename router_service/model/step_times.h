#pragma once

// Where the time of steps goes.

#include <array>
#include <cstddef>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/core/clock.h"

namespace expertmesh::router {

enum class StepPhase {
  kSchedule,   // whose tokens, and all else the engine does around a step
  kAttention,  // with its norm and projections
  kGate,       // with the norm before it
  kDispatch,   // rows planned, encoded and sent
  kExperts,    // until their answers are read
  kCombine,    // of the answers
  kDense,      // feed-forward layers of the router, shared experts among them
  kHead,       // logits
  kSampling,   // tokens chosen and delivered
};
inline constexpr size_t kNumStepPhases = 9;

constexpr absl::string_view StepPhaseName(StepPhase phase) {
  constexpr absl::string_view kNames[kNumStepPhases] = {
      "schedule", "attention", "gate", "dispatch", "experts",
      "combine",  "dense",     "head", "sampling"};
  return kNames[static_cast<size_t>(phase)];
}

// A clock that one thread stops whenever a phase ends: the time since the last
// such moment is that phase's.
class StepTimes {
 public:
  // Time until now is nobody's.
  void Begin() { last_ = Clock::Real()->Now(); }
  void End(StepPhase phase) {
    const absl::Duration now = Clock::Real()->Now();
    total_[static_cast<size_t>(phase)] += now - last_;
    last_ = now;
  }

  // Since construction, by phase.
  const std::array<absl::Duration, kNumStepPhases>& total() const {
    return total_;
  }

 private:
  std::array<absl::Duration, kNumStepPhases> total_ = {};
  absl::Duration last_ = Clock::Real()->Now();
};

}  // namespace expertmesh::router
