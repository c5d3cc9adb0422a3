#pragma once

// Places experts: plans, carries plans out, rebalances by itself if wanted.

#include <prometheus/counter.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "router_service/control/host_speeds.h"
#include "router_service/control/load_window.h"
#include "router_service/control/mesh_state.h"
#include "router_service/control/move_runner.h"
#include "router_service/control/planner.h"
#include "router_service/control/rebalance_policy.h"
#include "router_service/transport/expert_orders.h"
#include "services/core/clock.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Any may be absent.
struct ControllerMetrics {
  prometheus::Counter* changes_done = nullptr;
  prometheus::Counter* changes_failed = nullptr;
  prometheus::Counter* moves = nullptr;  // made, also by those that failed
  prometheus::Counter* loaded_bytes = nullptr;
};

struct ControllerOptions {
  MeshShape mesh;
  uint64_t first_version = 1;  // as MeshState has it
  PlannerOptions planner;
  absl::Duration load_window = absl::Seconds(30);
  // Rebalances by itself, looking every interval.
  bool auto_rebalance = false;
  absl::Duration rebalance_interval = absl::Seconds(10);
  RebalanceOptions rebalance;
  ControllerMetrics metrics;
};

struct PlacementProposal {
  MeshPlacement from;
  PlacementPlan plan;
};

struct AppliedPlacement {
  uint64_t version = 0;  // reached
  MovesMade made;
};

struct RebalancedPlacement {
  PlacementProposal proposal;
  AppliedPlacement applied;
};

// What hosts shall hold, by address.
using PlacementTarget = std::map<std::string, std::vector<SlotId>>;

// Owns the control thread, on which everything is planned and carried out, one
// request after the other; the public methods are thread-safe and return at
// once. Each request ends with one call of its `done`, mostly on the control
// thread; it must not block. Common errors: RESOURCE_EXHAUSTED where
// kMaxRequests wait, UNAVAILABLE from Stop on. Others and what they mean:
// protos/expertmesh/admin/v1/admin.proto.
class Controller {
 public:
  static constexpr size_t kMaxRequests = 16;

  template <typename Result>
  using Done = std::function<void(absl::StatusOr<Result>)>;

  // Pointers must outlive this.
  Controller(ControllerOptions options, ExpertOrders* orders,
             const Clock* clock);
  ~Controller();  // Stop

  // What transport hears: as EndpointSet::Options has it. Not more than one
  // OnEndpoints at a time.
  //   numerics_id  as MeshState::Update has it
  void OnEndpoints(const std::vector<EndpointInfo>& endpoints,
                   const std::string& numerics_id = "");
  void OnLoad(const std::string& address, const EndpointLoad& load);

  // As it is now, with the speeds that hosts were last seen to have; they alone
  // make no new version.
  MeshPlacement placement() const;
  // Told of each new version; as MeshState has it.
  void OnChange(std::function<void()> on_change) {
    mesh_->OnChange(std::move(on_change));
  }
  // Rows within the window [num_layers, num_experts], of the whole mesh.
  std::vector<double> WindowRows() const { return load_.Rows(); }
  absl::Duration load_window() const { return options_.load_window; }

  void Propose(Done<PlacementProposal> done);
  // As the last proposal has it, or hosts as given (others stay).
  void ApplyProposed(uint64_t expected_version, Done<AppliedPlacement> done);
  void Apply(uint64_t expected_version, PlacementTarget target,
             Done<AppliedPlacement> done);
  void Rebalance(Done<RebalancedPlacement> done);

  // What the service alone holds is first loaded elsewhere, in the turn of this
  // request; where there is nothing to load, and to take a drain back, it does
  // not wait for others. A drain that is taken back before it was ordered ends
  // with ABORTED.
  void Drain(const std::string& address, bool drain, ExpertOrders::Done done);

  // Gives up what goes on and fails what waits; when it returns, no order is
  // given any more.
  void Stop();

 private:
  // Runs on the control thread. `status` is not OK when it came to no turn.
  using Request = std::function<void(const absl::Status& status)>;

  template <typename Result>
  void Enqueue(std::function<absl::StatusOr<Result>()> work, Done<Result> done);
  absl::Status Add(Request request);
  // Says which managed hosts are left as they are, and how that is changed.
  void LogStandby(const std::string& numerics_id);
  void Loop();
  // Returns when to look again.
  absl::Duration RebalanceIfWorthIt();
  RebalanceDecision Judge(const PlacementProposal& proposal);

  // On the control thread.
  absl::StatusOr<PlacementProposal> MakeProposal() const;
  absl::StatusOr<AppliedPlacement> Carry(
      const MeshPlacement& from, const std::vector<PlacementMove>& moves);
  absl::StatusOr<AppliedPlacement> ApplyTarget(uint64_t expected_version,
                                               const PlacementTarget& target);
  absl::StatusOr<AppliedPlacement> ApplyLastProposal(uint64_t expected_version);
  // Lets others hold what this service alone holds.
  absl::Status Evacuate(const std::string& address);
  // What follows, unless the drain was taken back since this many `undos_`.
  void DrainEvacuated(const std::string& address, uint64_t undos,
                      ExpertOrders::Done done);
  absl::Status CheckNotUndone(const std::string& address, uint64_t undos);

  void OrderDrain(const std::string& address, bool drain,
                  ExpertOrders::Done done)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(drain_mutex_);

  const ControllerOptions options_;
  ExpertOrders* const orders_;
  const std::shared_ptr<MeshState> mesh_;  // outlived by orders to drain
  LoadWindow load_;
  MoveRunner runner_;
  // Managed hosts that stand by, as logged; OnEndpoints' own.
  std::set<std::string> logged_standby_;

  mutable Mutex speeds_mutex_;
  mutable HostSpeeds speeds_ ABSL_GUARDED_BY(speeds_mutex_);

  // The control thread's own.
  RebalancePolicy policy_;
  std::optional<PlacementProposal> last_proposal_;
  std::string last_reason_;  // logged of the automatic rebalance

  // Held while an order to drain is given, so that none is after Stop, or after
  // it was taken back.
  Mutex drain_mutex_;
  bool may_drain_ ABSL_GUARDED_BY(drain_mutex_) = true;
  // How often drains of an address were taken back.
  std::map<std::string, uint64_t> undos_ ABSL_GUARDED_BY(drain_mutex_);

  Mutex mutex_;
  CondVar wake_;
  std::deque<Request> requests_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread thread_;  // last: it uses everything above
};

}  // namespace expertmesh::router
