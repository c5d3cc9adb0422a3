#pragma once

// The expert weights of one service.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "expert_service/kernels/grouped_ffn.h"
#include "services/checkpoint/slot_list.h"
#include "services/core/mutex.h"

namespace expertmesh::expert {

// The weights of the slots a service hosts. Shares them with the sets
// made from it. Immutable; thread-safe.
class ExpertWeights {
 public:
  using Expert = std::shared_ptr<const LoadedExpert>;

  // `experts[i]` belongs to `slots[i]`. Slots are distinct, layers below
  // `num_layers`, experts below `num_experts`.
  ExpertWeights(int64_t num_layers, int64_t num_experts,
                std::vector<ExpertSlot> slots, std::vector<Expert> experts);
  // The CPU's.
  ExpertWeights(int64_t num_layers, int64_t num_experts,
                std::vector<ExpertSlot> slots,
                std::vector<PackedExpert> experts);

  // These slots and those; a slot in both keeps the weights it has.
  std::shared_ptr<const ExpertWeights> With(
      absl::Span<const ExpertSlot> slots,
      absl::Span<const Expert> experts) const;
  // These slots but those.
  std::shared_ptr<const ExpertWeights> Without(
      absl::Span<const ExpertSlot> slots) const;

  // nullptr when the slot is not hosted or there is none such. Valid as long as
  // this object. Constant time.
  const LoadedExpert* Find(int64_t layer, int64_t expert) const;

  // The hosted slots, in the order given, or ascending where made from others.
  absl::Span<const ExpertSlot> slots() const { return slots_; }
  // Of all matrices, padding included.
  size_t size_bytes() const { return size_bytes_; }

 private:
  int64_t num_layers_;
  int64_t num_experts_;
  std::vector<ExpertSlot> slots_;
  std::vector<Expert> experts_;
  std::vector<const LoadedExpert*> by_slot_;  // [num_layers, num_experts]
  size_t size_bytes_ = 0;
};

// The weights in use, replaced as a whole while batches run: whoever computes
// takes them once per batch and keeps them until it is done. Thread-safe.
class LiveWeights {
 public:
  explicit LiveWeights(std::shared_ptr<const ExpertWeights> weights)
      : weights_(std::move(weights)) {}

  std::shared_ptr<const ExpertWeights> Get() const {
    MutexLock lock(&mutex_);
    return weights_;
  }
  // Returns those that were in use.
  std::shared_ptr<const ExpertWeights> Replace(
      std::shared_ptr<const ExpertWeights> weights) {
    MutexLock lock(&mutex_);
    weights_.swap(weights);
    return weights;
  }

 private:
  mutable Mutex mutex_;
  std::shared_ptr<const ExpertWeights> weights_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertmesh::expert
