#include "router_service/control/move_orders.h"

#include <algorithm>

namespace expertmesh::router {
namespace {

using Kind = PlacementMove::Kind;

// Whether a move further on may join one of `host`, and if not, whether one
// behind it still may.
enum class Joins { kYes, kNo, kNoneFromHere };

Joins CanJoin(const PlacementMove& move, const MoveOrder& order) {
  if (move.kind == order.kind && move.host == order.host) return Joins::kYes;
  const bool is_passed = order.kind == Kind::kLoad && move.host != order.host;
  return is_passed ? Joins::kNo : Joins::kNoneFromHere;
}

}  // namespace

std::vector<MoveOrder> GroupMoves(absl::Span<const PlacementMove> moves,
                                  int64_t max_bytes) {
  std::vector<MoveOrder> orders;
  std::vector<bool> is_taken(moves.size());
  for (size_t first = 0; first < moves.size(); ++first) {
    if (is_taken[first]) continue;
    MoveOrder order = {.kind = moves[first].kind, .host = moves[first].host};
    for (size_t i = first; i < moves.size(); ++i) {
      if (is_taken[i]) continue;
      const Joins joins = CanJoin(moves[i], order);
      if (joins == Joins::kNo) continue;
      const bool is_full =
          !order.slots.empty() && order.bytes + moves[i].bytes > max_bytes;
      if (joins == Joins::kNoneFromHere || is_full) break;
      order.slots.push_back(moves[i].slot);
      order.bytes += moves[i].bytes;
      is_taken[i] = true;
    }
    std::sort(order.slots.begin(), order.slots.end());
    orders.push_back(std::move(order));
  }
  return orders;
}

}  // namespace expertmesh::router
