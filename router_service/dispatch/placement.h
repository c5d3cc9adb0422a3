#pragma once

// Which endpoints serve each slot.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
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

  // The endpoints that hold the slot; empty: nobody does.
  absl::Span<const int> replicas(int64_t layer, int64_t expert) const {
    return slots_[layer * num_experts_ + expert].endpoints;
  }
  // Those of them whose results are the mesh's to the bit. The others serve
  // when none of these can.
  absl::Span<const int> preferred(int64_t layer, int64_t expert) const {
    return replicas(layer, expert)
        .first(slots_[layer * num_experts_ + expert].num_preferred);
  }
  void Add(int64_t layer, int64_t expert, int endpoint,
           bool is_preferred = true) {
    Slot& slot = slots_[layer * num_experts_ + expert];
    if (is_preferred) {
      slot.endpoints.insert(slot.endpoints.begin() + slot.num_preferred++,
                            endpoint);
    } else {
      slot.endpoints.push_back(endpoint);
    }
  }
  void Remove(int64_t layer, int64_t expert, int endpoint) {
    Slot& slot = slots_[layer * num_experts_ + expert];
    const auto it =
        std::find(slot.endpoints.begin(), slot.endpoints.end(), endpoint);
    if (it == slot.endpoints.end()) return;
    if (it - slot.endpoints.begin() < slot.num_preferred) --slot.num_preferred;
    slot.endpoints.erase(it);
  }
  int64_t num_experts() const { return num_experts_; }

  // By endpoint: how much of the rows it is given beside others that would have
  // them back as soon; 1 where absent.
  const absl::flat_hash_map<int, double>& weights() const { return weights_; }
  void set_weight(int endpoint, double weight) { weights_[endpoint] = weight; }

  // Whether the endpoint knows batches that ask for sums.
  bool adds_rows(int endpoint) const { return adds_rows_.contains(endpoint); }
  void set_adds_rows(int endpoint) { adds_rows_.insert(endpoint); }

  // By endpoint: rows it lets us have in flight before it has answered any; 0:
  // no bound.
  const absl::flat_hash_map<int, uint32_t>& first_credits() const {
    return first_credits_;
  }
  void set_first_credit(int endpoint, uint32_t rows) {
    first_credits_[endpoint] = rows;
  }

 private:
  struct Slot {
    absl::InlinedVector<int, 4> endpoints;
    uint16_t num_preferred = 0;
  };
  int64_t num_experts_;
  std::vector<Slot> slots_;
  absl::flat_hash_set<int> adds_rows_;
  absl::flat_hash_map<int, double> weights_;
  absl::flat_hash_map<int, uint32_t> first_credits_;
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
