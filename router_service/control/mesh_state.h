#pragma once

// The mesh as the planner sees it, from what endpoints announce.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "router_service/control/placement_problem.h"
#include "router_service/transport/endpoint_info.h"
#include "services/core/mutex.h"
#include "services/mesh/mesh_config.h"

namespace expertmesh::router {

// What endpoints do not say.
struct MeshShape {
  int64_t num_layers = 0;
  int64_t num_experts = 0;
  // [num_layers] of packed weights, expected until an endpoint that holds some
  // says what they take; 0: layer without experts.
  std::vector<int64_t> slot_bytes;
  std::vector<PoolConfig> pools;
};

// One state of the mesh.
struct MeshPlacement {
  uint64_t version = 0;  // grows with every change of `hosts`
  uint64_t epoch = 0;    // of the newest order that any endpoint obeyed
  // Those that are ready; ids are addresses.
  std::vector<PlacementHost> hosts;
  std::vector<int64_t> slot_bytes;  // [num_layers]
};

// A service is managed if it announces a memory budget and its pool is: one of
// a mesh file with managed contents, or that of --experts-at, which says
// nothing of contents. Thread-safe.
class MeshState {
 public:
  // `first_version` is that of the empty mesh; above those of earlier runs, so
  // that nobody takes one of theirs for a current one.
  MeshState(MeshShape shape, uint64_t first_version);

  // Takes a snapshot of all endpoints. Returns the addresses of those that are
  // gone since the last one.
  std::vector<std::string> Update(const std::vector<EndpointInfo>& endpoints);

  MeshPlacement placement() const;

  // Whether an endpoint of this address is known, in whatever state.
  bool IsKnown(const std::string& address) const;

  // Whether a host other than that of this address holds the slot.
  bool IsHeldElsewhere(const std::string& address, SlotId slot) const;

  // Waits until the host of this address does (`held`) or does not hold a slot.
  // Errors: UNAVAILABLE where it is not ready any more, or after Stop;
  // DEADLINE_EXCEEDED after `timeout`.
  absl::Status AwaitSlot(const std::string& address, SlotId slot, bool held,
                         absl::Duration timeout);

  // Called after every change of version, on the thread of Update, under a
  // lock: must not block nor call OnChange. Empty: nobody listens any more.
  void OnChange(std::function<void()> on_change);

  // Ends all waiting, now and later.
  void Stop();

  const MeshShape& shape() const { return shape_; }

 private:
  PlacementHost HostOf(const EndpointInfo& endpoint) const;
  const PlacementHost* Find(const std::string& address) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const MeshShape shape_;
  mutable Mutex mutex_;
  CondVar changed_;
  MeshPlacement placement_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> known_ ABSL_GUARDED_BY(mutex_);  // ascending
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  // Not mutex_, which listeners that read the placement take.
  Mutex listener_mutex_;
  std::function<void()> on_change_ ABSL_GUARDED_BY(listener_mutex_);
};

// The problem of placing experts for this demand on these hosts.
PlacementProblem MakeProblem(const MeshShape& shape,
                             const MeshPlacement& placement,
                             std::vector<double> rows);

// "expert 3 of layer 1", for messages.
std::string SlotText(SlotId slot);

}  // namespace expertmesh::router
