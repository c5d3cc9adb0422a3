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

PlacementHost MeshState::HostOf(const EndpointInfo& endpoint,
                                const std::string& numerics_id) const {
  PlacementHost host;
  host.id = endpoint.address;
  host.pool = endpoint.pool;
  host.numerics_id = endpoint.numerics_id;
  host.stands_by = !numerics_id.empty() && endpoint.numerics_id != numerics_id;
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
    const std::vector<EndpointInfo>& endpoints,
    const std::string& numerics_id) {
  std::vector<PlacementHost> hosts;
  std::vector<std::string> known;
  uint64_t epoch = 0;
  for (const EndpointInfo& endpoint : endpoints) {
    // Orders that name it would pass by what is known of the service.
    if (!endpoint.duplicate_of.empty()) continue;
    known.push_back(endpoint.address);
    epoch = std::max(epoch, endpoint.placement_epoch);
    if (endpoint.state == EndpointState::kReady) {
      hosts.push_back(HostOf(endpoint, numerics_id));
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
    ready_ = std::move(hosts);
    std::erase_if(leaving_, [&](const std::string& address) {
      return std::none_of(ready_.begin(), ready_.end(),
                          [&](const auto& h) { return h.id == address; });
    });
    if (!Refresh()) return gone;
  }
  TellListener();
  return gone;
}

bool MeshState::Refresh() {
  std::vector<PlacementHost> hosts = ready_;
  std::erase_if(hosts, [this](const PlacementHost& host) {
    return leaving_.count(host.id) > 0;
  });
  if (hosts == placement_.hosts) return false;
  placement_.hosts = std::move(hosts);
  ++placement_.version;
  changed_.NotifyAll();
  return true;
}

void MeshState::TellListener() {
  MutexLock lock(&listener_mutex_);
  if (on_change_) on_change_();
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
  const bool is_given_up =
      std::find(unloading_.begin(), unloading_.end(), slot) != unloading_.end();
  return std::any_of(placement_.hosts.begin(), placement_.hosts.end(),
                     [&](const PlacementHost& host) {
                       if (host.id == address) return false;
                       if (is_given_up && host.id == unloading_host_) {
                         return false;
                       }
                       return std::binary_search(host.hosted.begin(),
                                                 host.hosted.end(), slot);
                     });
}

absl::Status MeshState::Leave(const std::string& address) {
  {
    MutexLock lock(&mutex_);
    const PlacementHost* const host = Find(address);
    // One that is not ready takes nothing along.
    if (host == nullptr) return absl::OkStatus();
    for (const SlotId slot : host->hosted) {
      if (IsHeldElsewhere(address, slot)) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("no other ready service holds ", SlotText(slot)));
    }
    leaving_.insert(address);
    Refresh();
  }
  TellListener();
  return absl::OkStatus();
}

void MeshState::Return(const std::string& address) {
  {
    MutexLock lock(&mutex_);
    leaving_.erase(address);
    if (!Refresh()) return;
  }
  TellListener();
}

absl::Status MeshState::BeginUnload(const std::string& address,
                                    absl::Span<const SlotId> slots) {
  MutexLock lock(&mutex_);
  for (const SlotId slot : slots) {
    if (IsHeldElsewhere(address, slot)) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "no other ready service holds ", SlotText(slot), " any more"));
  }
  unloading_host_ = address;
  unloading_.assign(slots.begin(), slots.end());
  return absl::OkStatus();
}

void MeshState::EndUnload() {
  MutexLock lock(&mutex_);
  unloading_.clear();
}

absl::Status MeshState::AwaitSlots(const std::string& address,
                                   absl::Span<const SlotId> slots, bool held,
                                   absl::Duration timeout) {
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
    return std::all_of(slots.begin(), slots.end(), [&](SlotId slot) {
      return held ==
             std::binary_search(host->hosted.begin(), host->hosted.end(), slot);
    });
  };
  if (!changed_.WaitFor(lock, timeout, is_over)) {
    return absl::DeadlineExceededError(absl::StrCat(
        "it did not announce so within ", absl::FormatDuration(timeout)));
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
