#include "router_service/engine/prefill_budget.h"

#include <algorithm>

namespace expertmesh::router {
namespace {

// It begins low: a first token that is late harms one request, a step that is
// late all that decode.
constexpr double kFirstTokens = 64;
// By which one step may change it. A step that waited for a lost expert says
// nothing about the next, and what it took away is back within three.
constexpr double kMostLess = 0.5;
constexpr double kMostMore = 1.25;

}  // namespace

PrefillBudget::PrefillBudget(absl::Duration target, int64_t max_tokens)
    : target_(target),
      max_tokens_(static_cast<double>(max_tokens)),
      tokens_(target == absl::ZeroDuration()
                  ? max_tokens_
                  : std::min(kFirstTokens, max_tokens_)) {}

void PrefillBudget::OnStep(int64_t prefill_tokens, absl::Duration duration) {
  if (target_ == absl::ZeroDuration() || prefill_tokens == 0 ||
      duration <= absl::ZeroDuration()) {
    return;
  }
  const double ratio =
      std::clamp(absl::FDivDuration(target_, duration), kMostLess, kMostMore);
  // A step that used less says how much is too much, but not how much is not.
  if (ratio >= 1 && prefill_tokens < tokens()) return;
  const double used = static_cast<double>(prefill_tokens);
  const double floor = std::min<double>(kFloor, max_tokens_);
  tokens_ = std::clamp(ratio * std::min(tokens_, ratio < 1 ? used : tokens_),
                       floor, max_tokens_);
}

}  // namespace expertmesh::router
