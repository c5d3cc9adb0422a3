#pragma once

// Makes the pools of a running mesh larger and smaller.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "services/cli/flags.h"
#include "services/cli/local_pools.h"
#include "services/cli/router_view.h"
#include "services/cli/supervisor.h"
#include "services/core/mutex.h"

namespace expertmesh {

// Thread-safe; changes wait for each other. Never on the supervisor's thread.
class PoolScaler {
 public:
  using Progress = absl::FunctionRef<void(const std::string&)>;
  struct Running {
    std::string pool;
    std::vector<std::string> addresses;  // in order of starting
  };

  // All services of `pools` run under `supervisor`, and so does the router at
  // `router_address`. The supervisor must outlive this.
  PoolScaler(LocalPools pools, Supervisor* supervisor,
             const std::string& router_address);

  // What the RPC ScalePools says; returns our pools, in the order of the mesh
  // file. Errors: also CANCELLED when the supervisor stops.
  absl::StatusOr<std::vector<Running>> Scale(
      const std::vector<PoolSize>& targets, Progress progress);

 private:
  struct Change {
    LocalPool* pool;
    uint32_t size;
  };

  absl::StatusOr<std::vector<Change>> Plan(const std::vector<PoolSize>& targets)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Grow(const std::vector<Change>& changes, Progress progress)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Makes the router use what was started.
  absl::Status Introduce(const std::vector<Change>& growing, Progress progress)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Shrink(const Change& change, Progress progress)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tells the router of a pool's first services only.
  absl::Status WriteFirst(const LocalPool& pool, uint32_t count) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends the others, counted from 0, once the router has forgotten them.
  absl::Status EndFrom(const LocalPool& pool, uint32_t first)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of the services of a pool from `first` on.
  std::vector<std::string> Addresses(const LocalPool& pool,
                                     uint32_t first) const;

  Supervisor& supervisor_;
  Mutex mutex_;
  LocalPools pools_ ABSL_GUARDED_BY(mutex_);
  RouterView router_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertmesh
