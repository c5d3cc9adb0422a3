#include "router_service/dispatch/routing.h"

#include "absl/strings/str_cat.h"

namespace expertmesh::router {

absl::string_view OverflowPolicyName(OverflowPolicy policy) {
  switch (policy) {
    case OverflowPolicy::kWait:
      return "wait";
    case OverflowPolicy::kNextBest:
      return "next_best";
    case OverflowPolicy::kDrop:
      return "drop";
  }
  return "?";
}

absl::StatusOr<OverflowPolicy> ParseOverflowPolicy(absl::string_view name) {
  for (const OverflowPolicy policy :
       {OverflowPolicy::kWait, OverflowPolicy::kNextBest,
        OverflowPolicy::kDrop}) {
    if (name == OverflowPolicyName(policy)) return policy;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown overflow policy '", name, "' (known: wait, next_best, drop)"));
}

absl::string_view RowOutcomeName(RowOutcome outcome) {
  switch (outcome) {
    case RowOutcome::kPrimary:
      return "primary";
    case RowOutcome::kReplica:
      return "replica";
    case RowOutcome::kWaited:
      return "waited";
    case RowOutcome::kRerouted:
      return "rerouted";
    case RowOutcome::kDropped:
      return "dropped";
  }
  return "?";
}

absl::string_view OverflowReasonName(OverflowReason reason) {
  constexpr std::array<absl::string_view, kNumOverflowReasons> kNames = {
      "capacity", "uncovered", "budget"};
  return kNames[static_cast<size_t>(reason)];
}

}  // namespace expertmesh::router
