#include "router_service/control/move_runner.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

// "load expert 3 of layer 1 and 4 more"
std::string OrderText(const MoveOrder& order) {
  std::string text = absl::StrCat(
      order.kind == PlacementMove::Kind::kLoad ? "load " : "unload ",
      SlotText(order.slots.front()));
  if (order.slots.size() > 1) {
    absl::StrAppend(&text, " and ", order.slots.size() - 1, " more");
  }
  return text;
}

std::vector<ExpertSlot> SlotsOf(const MoveOrder& order) {
  std::vector<ExpertSlot> slots;
  for (const SlotId slot : order.slots) {
    slots.push_back({static_cast<uint32_t>(slot.layer),
                     static_cast<uint32_t>(slot.expert)});
  }
  return slots;
}

// Where an order's end waits for whoever gave it.
struct Outcome {
  Mutex mutex;
  CondVar arrived;
  std::optional<absl::Status> status ABSL_GUARDED_BY(mutex);
};

}  // namespace

absl::Status Stopping() {
  return absl::UnavailableError("the router is shutting down");
}

absl::Status MoveRunner::Run(const std::vector<PlacementHost>& hosts,
                             const std::vector<PlacementMove>& moves,
                             MovesMade* made) {
  *made = {};
  last_epoch_ = std::max(last_epoch_, mesh_->placement().epoch) + 1;
  for (const MoveOrder& order : GroupMoves(moves, kMaxOrderBytes)) {
    const std::string& address = hosts[order.host].id;
    const absl::Status status = CarryOut(order, address);
    if (!status.ok()) {
      return absl::Status(
          status.code(),
          absl::StrCat("after ", made->moves, " of ", moves.size(),
                       " moves: ", address, " could not ", OrderText(order),
                       ": ", status.message()));
    }
    made->moves += static_cast<int>(order.slots.size());
    if (order.kind == PlacementMove::Kind::kLoad) {
      made->bytes_loaded += order.bytes;
    }
  }
  return absl::OkStatus();
}

absl::Status MoveRunner::CarryOut(const MoveOrder& order,
                                  const std::string& address) {
  const std::vector<ExpertSlot> slots = SlotsOf(order);
  if (order.kind == PlacementMove::Kind::kLoad) {
    RETURN_IF_ERROR(Give([&](ExpertOrders::Done done) {
      orders_->Load(address, slots, last_epoch_, std::move(done));
    }));
    return mesh_->AwaitSlots(address, order.slots, true, kAnnounceTimeout);
  }
  // Hosts may have been lost since the plan was made.
  RETURN_IF_ERROR(mesh_->BeginUnload(address, order.slots));
  const auto end = absl::MakeCleanup([this] { mesh_->EndUnload(); });
  RETURN_IF_ERROR(Give([&](ExpertOrders::Done done) {
    orders_->Unload(address, slots, last_epoch_, std::move(done));
  }));
  return mesh_->AwaitSlots(address, order.slots, false, kAnnounceTimeout);
}

absl::Status MoveRunner::Give(
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
