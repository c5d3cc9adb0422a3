#pragma once

// The mesh as the planner sees it, from what endpoints announce.

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
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
  // Those that are ready and not about to drain; ids are addresses.
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
  //   numerics_id  of the mesh: hosts of others stand by; empty: rows go to all
  //                alike
  std::vector<std::string> Update(const std::vector<EndpointInfo>& endpoints,
                                  const std::string& numerics_id = "");

  MeshPlacement placement() const;

  // Whether an endpoint of this address is known, in whatever state; not one
  // that is in use by another address.
  bool IsKnown(const std::string& address) const;

  // A host is about to be told to drain: it is none from now on, before it says
  // so itself, until it was away and came back or Return. Errors:
  // FAILED_PRECONDITION naming a slot that no other host holds, or that the
  // only other one is giving up; nothing is changed then.
  absl::Status Leave(const std::string& address);
  void Return(const std::string& address);

  // A host is about to be told to unload these slots: until EndUnload it counts
  // for none of them where others want to leave. Errors: FAILED_PRECONDITION
  // naming a slot that no other host holds. One at a time.
  absl::Status BeginUnload(const std::string& address,
                           absl::Span<const SlotId> slots);
  void EndUnload();

  // Waits until the host of this address does (`held`) or does not hold these
  // slots. Errors: UNAVAILABLE where it is not ready any more, or after Stop;
  // DEADLINE_EXCEEDED after `timeout`.
  absl::Status AwaitSlots(const std::string& address,
                          absl::Span<const SlotId> slots, bool held,
                          absl::Duration timeout);

  // Called after every change of version, on the thread that made it, under a
  // lock: must not block nor call OnChange. Empty: nobody listens any more.
  void OnChange(std::function<void()> on_change);

  // Ends all waiting, now and later.
  void Stop();

  const MeshShape& shape() const { return shape_; }

 private:
  PlacementHost HostOf(const EndpointInfo& endpoint,
                       const std::string& numerics_id) const;
  const PlacementHost* Find(const std::string& address) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether a host other than `address` holds the slot, and keeps it.
  bool IsHeldElsewhere(const std::string& address, SlotId slot) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Makes the placement what ready_ without leaving_ is; true if that changed.
  bool Refresh() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TellListener();

  const MeshShape shape_;
  mutable Mutex mutex_;
  CondVar changed_;
  MeshPlacement placement_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> known_ ABSL_GUARDED_BY(mutex_);  // ascending
  // Those that announce to be ready, and which of them are told to drain.
  std::vector<PlacementHost> ready_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> leaving_ ABSL_GUARDED_BY(mutex_);
  // What is being unloaded, and where.
  std::string unloading_host_ ABSL_GUARDED_BY(mutex_);
  std::vector<SlotId> unloading_ ABSL_GUARDED_BY(mutex_);
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
