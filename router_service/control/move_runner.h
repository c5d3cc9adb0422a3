#pragma once

// Moves of a plan, carried out on living hosts.

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "router_service/control/mesh_state.h"
#include "router_service/control/move_orders.h"
#include "router_service/control/move_sequence.h"
#include "router_service/transport/expert_orders.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Why what is asked for does not happen any more: UNAVAILABLE.
absl::Status Stopping();

struct MovesMade {
  int moves = 0;
  int64_t bytes_loaded = 0;
};

// Gives orders one by one and waits for each: a load until routers can see it,
// and an unload only while another host holds the slot that is ready and was
// not told to drain. So whatever ends a run, no slot is uncovered by it. Run
// has one thread; Stop any.
class MoveRunner {
 public:
  // How long an endpoint that obeyed may take to announce it.
  static constexpr absl::Duration kAnnounceTimeout = absl::Seconds(30);

  // An order happens as a whole, so what it loads is routed to when all of it
  // is there: no more at a time, unless one slot is.
  static constexpr int64_t kMaxOrderBytes = int64_t{256} << 20;

  // Pointers must outlive this.
  MoveRunner(MeshState* mesh, ExpertOrders* orders)
      : mesh_(mesh), orders_(orders) {}

  // Carries `moves` out with orders of a new epoch, above all that were seen or
  // used: a controller that is still at an older run is refused from now on, as
  // this one is once another began after it. `hosts` are those that moves
  // count. Tells *made how far it came, also when it fails.
  // Errors: that of the order that failed, naming host and slot; UNAVAILABLE
  // where a host is lost or after Stop; FAILED_PRECONDITION where an endpoint
  // obeys a newer epoch, or an unload would uncover a slot by now.
  absl::Status Run(const std::vector<PlacementHost>& hosts,
                   const std::vector<PlacementMove>& moves, MovesMade* made);

  // Gives the run up that goes on, and refuses others.
  void Stop();

 private:
  absl::Status CarryOut(const MoveOrder& order, const std::string& address);
  // Gives one order and waits for its end.
  absl::Status Give(absl::FunctionRef<void(ExpertOrders::Done)> give);

  MeshState* const mesh_;
  ExpertOrders* const orders_;
  uint64_t last_epoch_ = 0;
  Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace expertmesh::router
