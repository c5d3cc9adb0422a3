#pragma once

// How much prefill may join steps that decode.

#include <cstdint>

#include "absl/time/time.h"

namespace expertmesh::router {

// Whoever decodes waits for its next token as long as a step takes, and a step
// takes longer the more prompt tokens it computes as well. The budget follows
// the steps' times: after each step that decoded and used the whole budget, or
// took too long, it is multiplied by target ÷ time. For times a + b · tokens
// with a below the target this approaches the target from either side; where
// decoding alone takes longer, it ends at kFloor, so that prefill goes on.
// One thread.
class PrefillBudget {
 public:
  // Tokens there always are, however long steps take.
  static constexpr int64_t kFloor = 16;

  //   target      of a step that decodes; zero: none, the budget is max_tokens
  //   max_tokens  of a step
  PrefillBudget(absl::Duration target, int64_t max_tokens);

  // Prefill tokens that may join a step that decodes.
  int64_t tokens() const { return static_cast<int64_t>(tokens_); }

  // A step that decoded has run.
  void OnStep(int64_t prefill_tokens, absl::Duration duration);

 private:
  const absl::Duration target_;
  const double max_tokens_;
  double tokens_;
};

}  // namespace expertmesh::router
