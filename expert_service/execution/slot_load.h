#pragma once

// Rows served per slot, over all routers: what placement is planned from.

#include <atomic>
#include <cstdint>
#include <vector>

namespace expertmesh::expert {

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

  int64_t num_layers() const { return num_layers_; }
  int64_t num_experts() const { return num_experts_; }

 private:
  size_t Index(int64_t layer, int64_t expert) const {
    return static_cast<size_t>(layer * num_experts_ + expert);
  }

  const int64_t num_layers_;
  const int64_t num_experts_;
  std::vector<std::atomic<uint64_t>> rows_;  // [num_layers, num_experts]
};

}  // namespace expertmesh::expert
