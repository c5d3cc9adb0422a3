#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace expertmesh::router {

// When a batch is late enough to ask another replica too, and whether there is
// budget for it. One thread at a time.
class HedgePolicy {
 public:
  // `budget`: batches hedged over batches sent, at most; 0: never.
  explicit HedgePolicy(double budget) : budget_(budget) {}

  // A batch predicted to take `predicted` took `taken`.
  void Observe(absl::Duration predicted, absl::Duration taken);

  // How long to wait for a batch first: its predicted time, and so many times
  // longer as all but a hundredth of recent batches stayed within.
  absl::Duration Delay(absl::Duration predicted) const;

  void OnSend();
  // Whether the budget has a hedge left, and that one was made.
  bool HasBudget() const { return saved_ >= 1; }
  void OnHedge() { saved_ -= 1; }

 private:
  const double budget_;
  double saved_ = 0;  // hedges
  double high_quantile_ = 3;
  std::vector<float> ratios_;  // taken over predicted, the latest
};

}  // namespace expertmesh::router
