#pragma once

// The expert weights of one service.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "expert_service/kernels/grouped_ffn.h"

namespace expertmesh::expert {

// One expert of one layer; both are absolute indices.
struct ExpertSlot {
  int64_t layer = 0;
  int64_t expert = 0;

  bool operator==(const ExpertSlot&) const = default;
};

// Owns the packed weights of the slots a service hosts. Immutable; thread-safe.
class ExpertWeights {
 public:
  // `experts[i]` belongs to `slots[i]`. Slots are distinct, layers below
  // `num_layers`, experts below `num_experts`.
  ExpertWeights(int64_t num_layers, int64_t num_experts,
                std::vector<ExpertSlot> slots,
                std::vector<PackedExpert> experts);

  // nullptr when the slot is not hosted or there is none such. Valid as long as
  // this object. Constant time.
  const PackedExpert* Find(int64_t layer, int64_t expert) const;

  // The hosted slots, in the order given.
  absl::Span<const ExpertSlot> slots() const { return slots_; }
  // Of all packed matrices, padding included.
  size_t size_bytes() const { return size_bytes_; }

 private:
  int64_t num_layers_;
  int64_t num_experts_;
  std::vector<ExpertSlot> slots_;
  std::vector<PackedExpert> experts_;
  std::vector<const PackedExpert*> by_slot_;  // [num_layers, num_experts]
  size_t size_bytes_ = 0;
};

}  // namespace expertmesh::expert
