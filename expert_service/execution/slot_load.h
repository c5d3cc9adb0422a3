#pragma once

// What was served, over all routers: what placement and scaling go by.

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace expertmesh::expert {

// Rows served per slot, how often experts ran for them, and the time that took.
// Thread-safe; counts only grow.
class SlotLoad {
 public:
  SlotLoad(int64_t num_layers, int64_t num_experts);

  // Requires a slot of the model.
  void Add(int64_t layer, int64_t expert, uint64_t rows) {
    rows_[Index(layer, expert)].fetch_add(rows, std::memory_order_relaxed);
  }
  uint64_t rows(int64_t layer, int64_t expert) const {
    return rows_[Index(layer, expert)].load(std::memory_order_relaxed);
  }

  // Of all slots [num_layers, num_experts].
  std::vector<uint64_t> Totals() const {
    std::vector<uint64_t> totals;
    totals.reserve(rows_.size());
    for (const auto& rows : rows_) {
      totals.push_back(rows.load(std::memory_order_relaxed));
    }
    return totals;
  }

  void AddBusy(absl::Duration time) {
    busy_us_.fetch_add(static_cast<uint64_t>(absl::ToInt64Microseconds(time)),
                       std::memory_order_relaxed);
  }
  uint64_t busy_us() const { return busy_us_.load(std::memory_order_relaxed); }

  // Computed `experts`, each for one or more rows.
  void AddRuns(size_t experts) {
    runs_.fetch_add(experts, std::memory_order_relaxed);
  }
  uint64_t runs() const { return runs_.load(std::memory_order_relaxed); }

  int64_t num_layers() const { return num_layers_; }
  int64_t num_experts() const { return num_experts_; }

 private:
  size_t Index(int64_t layer, int64_t expert) const {
    return static_cast<size_t>(layer * num_experts_ + expert);
  }

  const int64_t num_layers_;
  const int64_t num_experts_;
  std::vector<std::atomic<uint64_t>> rows_;  // [num_layers, num_experts]
  std::atomic<uint64_t> busy_us_{0};
  std::atomic<uint64_t> runs_{0};
};

}  // namespace expertmesh::expert
