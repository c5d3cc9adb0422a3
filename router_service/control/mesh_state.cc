#include "router_service/control/mesh_state.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertmesh::router {
namespace {

// Packed weights of all slots take the same; rounded up, so that budgets hold.
int64_t AnnouncedSlotBytes(const std::vector<EndpointInfo>& endpoints) {
  int64_t bytes = 0;
  for (const EndpointInfo& endpoint : endpoints) {
    if (endpoint.hosted.empty()) continue;
    const auto slots = static_cast<int64_t>(endpoint.hosted.size());
    const auto total = static_cast<int64_t>(endpoint.memory_bytes);
    bytes = std::max(bytes, (total + slots - 1) / slots);
  }
  return bytes;
}

}  // namespace

MeshState::MeshState(MeshShape shape, uint64_t first_version)
    : shape_(std::move(shape)) {
  placement_.version = first_version;
  placement_.slot_bytes = shape_.slot_bytes;
}

PlacementHost MeshState::HostOf(const EndpointInfo& endpoint) const {
  PlacementHost host;
  host.id = endpoint.address;
  host.pool = endpoint.pool;
  uint64_t budget = endpoint.memory_budget_bytes;
  const auto pool =
      std::find_if(shape_.pools.begin(), shape_.pools.end(),
                   [&](const auto& p) { return p.name == endpoint.pool; });
  if (pool != shape_.pools.end()) {
    host.pool_weight = pool->weight;
    const bool is_open = pool->is_managed || pool->slots.empty();
    host.managed = budget > 0 && is_open;
    if (pool->memory_budget_bytes > 0) {
      budget = std::min(budget, pool->memory_budget_bytes);
    }
  }
  host.budget_bytes = static_cast<int64_t>(budget);
  for (const ExpertSlot& slot : endpoint.hosted) {
    host.hosted.push_back({static_cast<int32_t>(slot.layer),
                           static_cast<int32_t>(slot.expert_id)});
  }
  return host;
}

std::vector<std::string> MeshState::Update(
    const std::vector<EndpointInfo>& endpoints) {
  std::vector<PlacementHost> hosts;
  std::vector<std::string> known;
  uint64_t epoch = 0;
  for (const EndpointInfo& endpoint : endpoints) {
    // Orders that name it would pass by what is known of the service.
    if (!endpoint.duplicate_of.empty()) continue;
    known.push_back(endpoint.address);
    epoch = std::max(epoch, endpoint.placement_epoch);
    if (endpoint.state == EndpointState::kReady) {
      hosts.push_back(HostOf(endpoint));
    }
  }
  std::sort(known.begin(), known.end());
  const int64_t announced = AnnouncedSlotBytes(endpoints);
  std::vector<std::string> gone;
  {
    MutexLock lock(&mutex_);
    std::set_difference(known_.begin(), known_.end(), known.begin(),
                        known.end(), std::back_inserter(gone));
    known_ = std::move(known);
    // Never back: an endpoint that obeyed it may be away for a while.
    placement_.epoch = std::max(placement_.epoch, epoch);
    if (announced > 0) {
      for (int64_t& bytes : placement_.slot_bytes) {
        if (bytes > 0) bytes = announced;
      }
    }
    if (hosts == placement_.hosts) return gone;
    placement_.hosts = std::move(hosts);
    ++placement_.version;
    changed_.NotifyAll();
  }
  MutexLock lock(&listener_mutex_);
  if (on_change_) on_change_();
  return gone;
}

MeshPlacement MeshState::placement() const {
  MutexLock lock(&mutex_);
  return placement_;
}

bool MeshState::IsKnown(const std::string& address) const {
  MutexLock lock(&mutex_);
  return std::binary_search(known_.begin(), known_.end(), address);
}

const PlacementHost* MeshState::Find(const std::string& address) const {
  for (const PlacementHost& host : placement_.hosts) {
    if (host.id == address) return &host;
  }
  return nullptr;
}

bool MeshState::IsHeldElsewhere(const std::string& address, SlotId slot) const {
  MutexLock lock(&mutex_);
  return std::any_of(placement_.hosts.begin(), placement_.hosts.end(),
                     [&](const PlacementHost& host) {
                       return host.id != address &&
                              std::binary_search(host.hosted.begin(),
                                                 host.hosted.end(), slot);
                     });
}

absl::Status MeshState::AwaitSlot(const std::string& address, SlotId slot,
                                  bool held, absl::Duration timeout) {
  absl::Status status;
  MutexLock lock(&mutex_);
  const auto is_over = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (stopping_) {
      status = absl::UnavailableError("the router is shutting down");
      return true;
    }
    const PlacementHost* const host = Find(address);
    if (host == nullptr) {
      status = absl::UnavailableError("it is not ready any more");
      return true;
    }
    return held ==
           std::binary_search(host->hosted.begin(), host->hosted.end(), slot);
  };
  if (!changed_.WaitFor(lock, timeout, is_over)) {
    return absl::DeadlineExceededError(absl::StrCat(
        "it did not announce within ", absl::FormatDuration(timeout),
        " that it ", held ? "holds " : "gave up ", SlotText(slot)));
  }
  return status;
}

void MeshState::OnChange(std::function<void()> on_change) {
  MutexLock lock(&listener_mutex_);
  on_change_ = std::move(on_change);
}

void MeshState::Stop() {
  MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.NotifyAll();
}

PlacementProblem MakeProblem(const MeshShape& shape,
                             const MeshPlacement& placement,
                             std::vector<double> rows) {
  PlacementProblem problem;
  problem.num_layers = shape.num_layers;
  problem.num_experts = shape.num_experts;
  problem.rows = std::move(rows);
  problem.slot_bytes = placement.slot_bytes;
  problem.hosts = placement.hosts;
  return problem;
}

std::string SlotText(SlotId slot) {
  return absl::StrCat("expert ", slot.expert, " of layer ", slot.layer);
}

}  // namespace expertmesh::router
