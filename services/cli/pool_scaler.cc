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
  std::vector<ServiceSpec> specs;
  for (const auto& [pool, size] : changes) {
    for (uint32_t number = pool->size + 1; number <= size; ++number) {
      specs.push_back(pools_.Spec(*pool, number));
    }
  }
  if (specs.empty()) return absl::OkStatus();
  progress(absl::StrCat("starting ", Services(specs.size())));
  RETURN_IF_ERROR(supervisor_.Add(std::move(specs)));
  std::vector<std::string> added;
  for (const auto& [pool, size] : changes) {
    if (size <= pool->size) continue;
    for (std::string& address : Addresses(*pool, pool->size)) {
      added.push_back(std::move(address));
    }
    pool->size = size;
    RETURN_IF_ERROR(pools_.WriteAddresses(*pool, Addresses(*pool, 0)));
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
  for (size_t i = leaving.size(); i-- > 0;) {
    const absl::Status drained = router_.Drain(leaving[i]);
    if (drained.ok()) continue;
    for (size_t j = i + 1; j < leaving.size(); ++j) router_.Undrain(leaving[j]);
    return absl::Status(
        drained.code(),
        absl::StrCat("pool ", pool.config.name, " stays at ",
                     Services(pool.size), ": ", drained.message()));
  }
  std::vector<std::string> names;
  for (uint32_t number = change.size + 1; number <= pool.size; ++number) {
    names.push_back(pool.ServiceName(number));
  }
  std::vector<std::string> staying = Addresses(pool, 0);
  staying.resize(change.size);
  RETURN_IF_ERROR(pools_.WriteAddresses(pool, staying));
  pool.size = change.size;
  // Should it take too long, they end all the same: they are drained.
  const absl::Status gone = router_.AwaitGone(leaving);
  if (absl::IsCancelled(gone)) return gone;
  return supervisor_.Remove(names);
}

std::vector<std::string> PoolScaler::Addresses(const LocalPool& pool,
                                               uint32_t first) const {
  std::vector<std::string> addresses;
  for (const ServiceStatus& service : supervisor_.services()) {
    if (service.pool == pool.config.name) {
      addresses.push_back(service.info->grpc);
    }
  }
  addresses.erase(addresses.begin(), addresses.begin() + first);
  return addresses;
}

}  // namespace expertmesh
