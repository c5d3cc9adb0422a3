#pragma once

// What a placement is planned from: demand, hosts and what they hold.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace expertmesh::router {

// One (layer, expert). Layers count over all layers of the model.
struct SlotId {
  int32_t layer = 0;
  int32_t expert = 0;

  friend bool operator==(const SlotId&, const SlotId&) = default;
  friend auto operator<=>(const SlotId&, const SlotId&) = default;
};

struct PlacementHost {
  std::string id;
  // Managed: contents may be changed within `budget_bytes`. Otherwise fixed:
  // `hosted` stays as it is, whatever it weighs.
  bool managed = false;
  int64_t budget_bytes = 0;  // 0: emptied, as of a host that is to leave
  double speed = 1;          // rows per second, in any unit common to all hosts
  double pool_weight = 1;    // share of rows wanted, relative to the speed
  std::vector<SlotId> hosted;  // now; in any order, each once
  // It is asked only for what no other host holds: its numerics_id is not the
  // mesh's, and rows keep to those.
  bool stands_by = false;
  std::string pool;         // for people
  std::string numerics_id;  // likewise

  bool operator==(const PlacementHost&) const = default;

  // Replicas of a slot get rows in proportion to this.
  double rate() const { return speed * pool_weight; }
};

struct PlacementProblem {
  int64_t num_layers = 0;
  int64_t num_experts = 0;
  std::vector<double> rows;         // [num_layers, num_experts] demand, ≥ 0
  std::vector<int64_t> slot_bytes;  // [num_layers]; 0: layer without experts
  std::vector<PlacementHost> hosts;

  int64_t num_slots() const { return num_layers * num_experts; }
  int64_t IndexOf(SlotId slot) const {
    return slot.layer * num_experts + slot.expert;
  }
  SlotId SlotAt(int64_t index) const {
    return {static_cast<int32_t>(index / num_experts),
            static_cast<int32_t>(index % num_experts)};
  }
  int64_t BytesOf(int64_t slot_index) const {
    return slot_bytes[slot_index / num_experts];
  }
};

// What each host holds, ascending: [num_hosts]. Indices are of
// PlacementProblem::hosts.
using HostedSlots = std::vector<std::vector<SlotId>>;

// Contents as they are now, sorted.
HostedSlots CurrentContents(const PlacementProblem& problem);

// Errors: INVALID_ARGUMENT for shapes that do not fit (or 2^31 slots and more),
// no layer with experts, demand or speeds that are negative or not finite, a
// rate of 0, slots outside the model or named twice on a host, no host at all.
absl::Status ValidateProblem(const PlacementProblem& problem);

// Errors: INVALID_ARGUMENT where `hosted` has not one list per host or names
// slots outside the model or twice; FAILED_PRECONDITION where a slot is hosted
// nowhere, a fixed host would change or a managed one exceed its budget. The
// message names slot or host.
absl::Status CheckPlacement(const PlacementProblem& problem,
                            const HostedSlots& hosted);

}  // namespace expertmesh::router
