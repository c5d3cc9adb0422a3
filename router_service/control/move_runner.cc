#include "router_service/control/move_runner.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

absl::Status Stopping() {
  return absl::UnavailableError("the router is shutting down");
}

absl::string_view Verb(const PlacementMove& move) {
  return move.kind == PlacementMove::Kind::kLoad ? "load" : "unload";
}

// Where an order's end waits for whoever gave it.
struct Outcome {
  Mutex mutex;
  CondVar arrived;
  std::optional<absl::Status> status ABSL_GUARDED_BY(mutex);
};

}  // namespace

absl::Status MoveRunner::Run(const std::vector<PlacementHost>& hosts,
                             const std::vector<PlacementMove>& moves,
                             MovesMade* made) {
  *made = {};
  last_epoch_ = std::max(last_epoch_, mesh_->placement().epoch) + 1;
  for (const PlacementMove& move : moves) {
    const std::string& address = hosts[move.host].id;
    const absl::Status status = Make(move, address, last_epoch_);
    if (!status.ok()) {
      return absl::Status(
          status.code(),
          absl::StrCat("after ", made->moves, " of ", moves.size(),
                       " moves: ", address, " could not ", Verb(move), " ",
                       SlotText(move.slot), ": ", status.message()));
    }
    ++made->moves;
    if (move.kind == PlacementMove::Kind::kLoad) {
      made->bytes_loaded += move.bytes;
    }
  }
  return absl::OkStatus();
}

absl::Status MoveRunner::Make(const PlacementMove& move,
                              const std::string& address, uint64_t epoch) {
  const std::vector<ExpertSlot> slots = {
      {static_cast<uint32_t>(move.slot.layer),
       static_cast<uint32_t>(move.slot.expert)}};
  const bool is_load = move.kind == PlacementMove::Kind::kLoad;
  // Hosts may have been lost since the plan was made.
  if (!is_load && !mesh_->IsHeldElsewhere(address, move.slot)) {
    return absl::FailedPreconditionError(
        "no other ready service holds it any more");
  }
  RETURN_IF_ERROR(Order([&](ExpertOrders::Done done) {
    if (is_load) {
      orders_->Load(address, slots, epoch, std::move(done));
    } else {
      orders_->Unload(address, slots, epoch, std::move(done));
    }
  }));
  return mesh_->AwaitSlot(address, move.slot, is_load, kAnnounceTimeout);
}

absl::Status MoveRunner::Order(
    absl::FunctionRef<void(ExpertOrders::Done)> give) {
  const auto outcome = std::make_shared<Outcome>();
  {
    // Under the lock: Stop either sees this order or keeps it from being given.
    MutexLock lock(&mutex_);
    if (stopping_) return Stopping();
    give([outcome](const absl::Status& status) {
      MutexLock lock(&outcome->mutex);
      outcome->status = status;
      outcome->arrived.NotifyAll();
    });
  }
  absl::Status status;
  {
    MutexLock lock(&outcome->mutex);
    outcome->arrived.Wait(lock,
                          [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(outcome->mutex) {
                            return outcome->status.has_value();
                          });
    status = *outcome->status;
  }
  MutexLock lock(&mutex_);
  return !status.ok() && stopping_ ? Stopping() : status;
}

void MoveRunner::Stop() {
  MutexLock lock(&mutex_);
  stopping_ = true;
  orders_->CancelAll();
}

}  // namespace expertmesh::router
