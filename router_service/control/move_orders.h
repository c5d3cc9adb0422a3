#pragma once

// Moves that hosts are told of together.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "router_service/control/move_sequence.h"

namespace expertmesh::router {

// Of one kind and one host.
struct MoveOrder {
  PlacementMove::Kind kind = PlacementMove::Kind::kLoad;
  int host = 0;               // as PlacementMove has it
  std::vector<SlotId> slots;  // ascending
  int64_t bytes = 0;          // of them all
};

// Gathers moves into orders of at most `max_bytes`, or of one move where that
// is more. A load joins an earlier one of its host unless the host unloads
// something in between, which may make the room; it passes moves of other
// hosts, for which it makes no difference. Unloads join their neighbours only.
// So what holds after every one of `moves`, as PlanMoves has them, holds after
// every order.
std::vector<MoveOrder> GroupMoves(absl::Span<const PlacementMove> moves,
                                  int64_t max_bytes);

}  // namespace expertmesh::router
