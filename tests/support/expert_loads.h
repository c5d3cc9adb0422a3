#pragma once

// Demand for experts, synthetic and recorded, and placements to compare with.

#include <cstdint>
#include <string>
#include <vector>

#include "router_service/control/placement_problem.h"

namespace expertmesh {

enum class LoadKind {
  kUniform,
  kZipf,       // the r-th busiest expert gets 1/r
  kHot,        // an eighth of the experts takes 90%
  kLogNormal,  // exp of a standard normal
};
inline constexpr LoadKind kLoadKinds[] = {LoadKind::kUniform, LoadKind::kZipf,
                                          LoadKind::kHot, LoadKind::kLogNormal};
std::string LoadKindName(LoadKind kind);

// Rows [num_layers, num_experts], 2^15 a layer; which experts are hot is
// another matter in every layer. A function of the arguments.
std::vector<double> SyntheticLoad(LoadKind kind, int64_t num_layers,
                                  int64_t num_experts, uint64_t seed = 1);

// The demo model's rows [4, 16] under one kind of text: "play", "novel",
// "speech", "programs" or "chat" (tests/golden/loads). Empty if there is no
// such file.
std::vector<double> RecordedLoad(const std::string& text);

// `num_hosts` equal managed hosts, empty, with room for `slots_per_layer`
// slots of every layer together, over `rows`.
router::PlacementProblem EqualHosts(std::vector<double> rows,
                                    int64_t num_layers, int num_hosts,
                                    int64_t slots_per_layer);

// As many slots, but placed by number: a layer's slot p is expert
// p mod num_experts, and hosts have ranges of slots. No expert twice on a host
// as long as slots_per_layer ÷ num_hosts ≤ num_experts.
router::HostedSlots ContiguousPlacement(const router::PlacementProblem& problem,
                                        int64_t slots_per_layer);

}  // namespace expertmesh
