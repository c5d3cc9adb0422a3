#include "services/cli/pool_scaler.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

std::string Services(uint32_t count) {
  return absl::StrCat(count, count == 1 ? " service" : " services");
}

}  // namespace

PoolScaler::PoolScaler(LocalPools pools, Supervisor* supervisor,
                       const std::string& router_address)
    : supervisor_(*supervisor),
      pools_(std::move(pools)),
      router_(router_address, [supervisor](absl::Duration duration) {
        return supervisor->SleepUnlessStopping(duration);
      }) {}

absl::StatusOr<std::vector<PoolScaler::Change>> PoolScaler::Plan(
    const std::vector<PoolSize>& targets) {
  std::vector<Change> changes;
  for (const PoolSize& target : targets) {
    ASSIGN_OR_RETURN(LocalPool* const pool, pools_.Find(target.pool));
    RETURN_IF_ERROR(pool->CheckSize(target.services));
    for (const Change& other : changes) {
      if (other.pool != pool) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("pool ", target.pool, " is named twice"));
    }
    changes.push_back({pool, target.services});
  }
  return changes;
}

absl::StatusOr<std::vector<PoolScaler::Running>> PoolScaler::Scale(
    const std::vector<PoolSize>& targets, Progress progress) {
  MutexLock lock(&mutex_);
  // Who waited for the lock may find services half-way.
  if (supervisor_.SleepUnlessStopping(absl::ZeroDuration())) {
    return absl::CancelledError("the launcher is stopping");
  }
  ASSIGN_OR_RETURN(const std::vector<Change> changes, Plan(targets));
  // First, so that what leaves may be held by what has come.
  RETURN_IF_ERROR(Grow(changes, progress));
  for (const Change& change : changes) {
    if (change.size < change.pool->size) {
      RETURN_IF_ERROR(Shrink(change, progress));
    }
  }
  std::vector<Running> running;
  for (const LocalPool& pool : pools_.pools()) {
    running.push_back({pool.config.name, Addresses(pool, 0)});
  }
  return running;
}

absl::Status PoolScaler::Grow(const std::vector<Change>& changes,
                              Progress progress) {
  std::vector<Change> growing;
  std::vector<ServiceSpec> specs;
  for (const Change& change : changes) {
    if (change.size <= change.pool->size) continue;
    growing.push_back(change);
    for (uint32_t n = change.pool->size + 1; n <= change.size; ++n) {
      specs.push_back(pools_.Spec(*change.pool, n));
    }
  }
  if (specs.empty()) return absl::OkStatus();
  progress(absl::StrCat("starting ", Services(specs.size())));
  RETURN_IF_ERROR(supervisor_.Add(std::move(specs)));
  const absl::Status introduced = Introduce(growing, progress);
  if (introduced.ok()) {
    for (const auto& [pool, size] : growing) pool->size = size;
  } else if (!absl::IsCancelled(introduced)) {
    for (const auto& [pool, size] : growing) {
      WriteFirst(*pool, pool->size).IgnoreError();
    }
    for (const auto& [pool, size] : growing) {
      RETURN_IF_ERROR(EndFrom(*pool, pool->size));
    }
  }
  return introduced;
}

absl::Status PoolScaler::Introduce(const std::vector<Change>& growing,
                                   Progress progress) {
  std::vector<std::string> added;
  for (const auto& [pool, size] : growing) {
    for (std::string& address : Addresses(*pool, pool->size)) {
      added.push_back(std::move(address));
    }
    RETURN_IF_ERROR(WriteFirst(*pool, size));
  }
  progress(
      absl::StrCat("waiting until the router uses ", Services(added.size())));
  return router_.AwaitReady(added);
}

absl::Status PoolScaler::Shrink(const Change& change, Progress progress) {
  LocalPool& pool = *change.pool;
  const std::vector<std::string> leaving = Addresses(pool, change.size);
  progress(absl::StrCat("draining ", Services(leaving.size()), " of ",
                        pool.config.name));
  // The router has the last word on what else holds their experts.
  absl::Status drained;
  std::vector<std::string> asked;
  for (auto address = leaving.rbegin();
       address != leaving.rend() && drained.ok(); ++address) {
    asked.push_back(*address);
    drained = router_.Drain(*address);
  }
  if (drained.ok()) drained = WriteFirst(pool, change.size);
  if (absl::IsCancelled(drained)) return drained;
  if (!drained.ok()) {
    // Also the one that failed: the router may be about to drain it.
    for (const std::string& address : asked) router_.Undrain(address);
    return absl::Status(
        drained.code(),
        absl::StrCat("pool ", pool.config.name, " stays at ",
                     Services(pool.size), ": ", drained.message()));
  }
  pool.size = change.size;
  return EndFrom(pool, change.size);
}

absl::Status PoolScaler::WriteFirst(const LocalPool& pool,
                                    uint32_t count) const {
  std::vector<std::string> addresses = Addresses(pool, 0);
  addresses.resize(std::min<size_t>(count, addresses.size()));
  return pools_.WriteAddresses(pool, addresses);
}

absl::Status PoolScaler::EndFrom(const LocalPool& pool, uint32_t first) {
  const std::vector<std::string> leaving = Addresses(pool, first);
  std::vector<std::string> names;
  for (uint32_t i = 1; i <= leaving.size(); ++i) {
    names.push_back(pool.ServiceName(first + i));
  }
  // Should it take too long, they end all the same.
  const absl::Status gone = router_.AwaitGone(leaving);
  if (absl::IsCancelled(gone)) return gone;
  return supervisor_.Remove(names);
}

std::vector<std::string> PoolScaler::Addresses(const LocalPool& pool,
                                               uint32_t first) const {
  std::vector<std::string> addresses;
  for (const ServiceStatus& service : supervisor_.services()) {
    if (service.pool == pool.config.name && service.info.has_value()) {
      addresses.push_back(service.info->grpc);
    }
  }
  addresses.erase(
      addresses.begin(),
      addresses.begin() + std::min<size_t>(first, addresses.size()));
  return addresses;
}

}  // namespace expertmesh
