#pragma once

// Which endpoints serve each slot.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// One consistent picture of the mesh. A slot is one (layer, expert); endpoints
// are indices of the transport.
class Placement {
 public:
  Placement(int64_t num_layers, int64_t num_experts)
      : num_experts_(num_experts), slots_(num_layers * num_experts) {}

  // The endpoints that hold the slot, in the order they were added; empty:
  // nobody does.
  absl::Span<const int> replicas(int64_t layer, int64_t expert) const {
    return slots_[layer * num_experts_ + expert];
  }
  void Add(int64_t layer, int64_t expert, int endpoint) {
    slots_[layer * num_experts_ + expert].push_back(endpoint);
  }
  int64_t num_experts() const { return num_experts_; }

 private:
  int64_t num_experts_;
  std::vector<absl::InlinedVector<int, 4>> slots_;
};

// The current placement: swapped whole by whoever watches the endpoints, read
// by the engine. Thread-safe.
class PlacementTable {
 public:
  explicit PlacementTable(std::shared_ptr<const Placement> initial)
      : current_(std::move(initial)) {}

  void Set(std::shared_ptr<const Placement> placement) {
    MutexLock lock(&mutex_);
    current_ = std::move(placement);
    if (on_change_) on_change_();
  }
  std::shared_ptr<const Placement> Get() const {
    MutexLock lock(&mutex_);
    return current_;
  }

  // Called after every Set, under a lock: must not block nor call back. Empty:
  // nobody listens any more.
  void OnChange(std::function<void()> on_change) {
    MutexLock lock(&mutex_);
    on_change_ = std::move(on_change);
  }

 private:
  mutable Mutex mutex_;
  std::shared_ptr<const Placement> current_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> on_change_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertmesh::router
