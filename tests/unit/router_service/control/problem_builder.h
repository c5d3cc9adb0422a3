#pragma once

// Placement problems as tests write them, and what every plan must keep to.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "router_service/control/move_sequence.h"
#include "router_service/control/placement_problem.h"

namespace expertmesh::router {

// Of `num_layers` layers; every slot weighs one byte, so budgets are in slots.
PlacementProblem MakeProblem(int64_t num_layers, std::vector<double> rows);
PlacementHost ManagedHost(std::string id, int64_t budget,
                          std::vector<SlotId> hosted = {});
PlacementHost FixedHost(std::string id, std::vector<SlotId> hosted);

// Carries out the moves one by one. Expects of each that it makes sense, that
// no slot loses its last copy, that fixed hosts do not change and that no
// managed host goes over its budget that was not over it already. Returns what
// is hosted in the end.
HostedSlots CarryOut(const PlacementProblem& problem,
                     absl::Span<const PlacementMove> moves);

// "+1:0/3" loads expert 3 of layer 0 on host 1, "-1:0/3" unloads it.
std::vector<std::string> MoveTexts(absl::Span<const PlacementMove> moves);

}  // namespace expertmesh::router
