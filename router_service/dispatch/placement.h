#pragma once

// Which endpoint serves each slot.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// One consistent picture of the mesh. A slot is one (layer, expert); endpoints
// are indices of the transport.
class Placement {
 public:
  static constexpr int kNone = -1;

  Placement(int64_t num_layers, int64_t num_experts)
      : num_experts_(num_experts), slots_(num_layers * num_experts, kNone) {}

  int endpoint(int64_t layer, int64_t expert) const {
    return slots_[layer * num_experts_ + expert];
  }
  void Assign(int64_t layer, int64_t expert, int endpoint) {
    slots_[layer * num_experts_ + expert] = endpoint;
  }

 private:
  int64_t num_experts_;
  std::vector<int> slots_;
};

// The current placement: swapped whole by whoever watches the endpoints, read
// once per step by the engine. Thread-safe.
class PlacementTable {
 public:
  explicit PlacementTable(std::shared_ptr<const Placement> initial)
      : current_(std::move(initial)) {}

  void Set(std::shared_ptr<const Placement> placement) {
    MutexLock lock(&mutex_);
    current_ = std::move(placement);
  }
  std::shared_ptr<const Placement> Get() const {
    MutexLock lock(&mutex_);
    return current_;
  }

 private:
  mutable Mutex mutex_;
  std::shared_ptr<const Placement> current_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertmesh::router
