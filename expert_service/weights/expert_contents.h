#pragma once

// What a service holds, and the orders that change it while it serves.

#include <prometheus/gauge.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "expert_service/weights/expert_loader.h"
#include "expert_service/weights/expert_weights.h"
#include "services/checkpoint/model_config.h"
#include "services/core/mutex.h"

namespace expertmesh::expert {

// Carries out orders to load and unload slots on the thread that gives them,
// one at a time, while others compute with what is published. An order happens
// as a whole: its slots appear or vanish together, and one that fails changes
// nothing. Weights unloaded are freed when the last batch that uses them is
// done, before the order returns.
//
// Orders carry an epoch. One lower than the last obeyed is refused, so that a
// controller that comes back from the dead undoes nothing. Thread-safe.
class ExpertContents {
 public:
  struct Options {
    const ModelConfig* model = nullptr;  // outlives this
    SlotLoader load;
    size_t slot_bytes = 0;                        // of one packed slot
    uint64_t memory_budget_bytes = 0;             // 0: no limit
    std::string budget_flag = "--memory-budget";  // what sets it
  };
  // Either may be absent.
  struct Metrics {
    prometheus::Gauge* loaded_slots = nullptr;
    prometheus::Gauge* memory_bytes = nullptr;
  };

  // Publishes to `weights`, which outlives this and which nobody else changes.
  ExpertContents(const Options& options, const Metrics& metrics,
                 LiveWeights* weights);

  // Loads what is not there yet; what is there stays. `options` as in
  // LoadSlots, over the slots that are to be loaded.
  // Errors: INVALID_ARGUMENT for a slot that the model lacks,
  // FAILED_PRECONDITION for a stale epoch, RESOURCE_EXHAUSTED where it does not
  // fit the memory budget or the machine, CANCELLED, or the loader's.
  absl::Status Load(absl::Span<const ExpertSlot> slots, uint64_t epoch,
                    const SlotLoadOptions& options);
  // What is not there is no fault. Errors: as Load.
  absl::Status Unload(absl::Span<const ExpertSlot> slots, uint64_t epoch);

  // Of the last order obeyed; 0: none yet.
  uint64_t epoch() const { return epoch_.load(); }
  // Slots of the model: an order that names more is none.
  uint64_t max_slots() const;
  uint64_t memory_budget_bytes() const { return options_.memory_budget_bytes; }
  size_t slot_bytes() const { return options_.slot_bytes; }

 private:
  absl::Status CheckEpoch(uint64_t epoch) const;
  absl::Status CheckBudget(const ExpertWeights& held, size_t more) const;
  void Publish(std::shared_ptr<const ExpertWeights> weights);

  const Options options_;
  const Metrics metrics_;
  LiveWeights* const weights_;
  Mutex order_;  // held while an order is carried out
  std::atomic<uint64_t> epoch_{0};
};

}  // namespace expertmesh::expert
