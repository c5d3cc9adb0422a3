#include "expert_service/weights/expert_contents.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/checkpoint/slot_list.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

// A batch runs for milliseconds.
constexpr absl::Duration kInUsePoll = absl::Milliseconds(1);

}  // namespace

ExpertContents::ExpertContents(const Options& options, const Metrics& metrics,
                               LiveWeights* weights)
    : options_(options), metrics_(metrics), weights_(weights) {}

absl::Status ExpertContents::Load(absl::Span<const ExpertSlot> slots,
                                  uint64_t epoch,
                                  const SlotLoadOptions& options) {
  RETURN_IF_ERROR(CheckSlots(slots, *options_.model));
  MutexLock lock(&order_);
  RETURN_IF_ERROR(CheckEpoch(epoch));
  const std::shared_ptr<const ExpertWeights> held = weights_->Get();
  std::vector<ExpertSlot> missing;
  for (const ExpertSlot& slot : slots) {
    if (held->Find(slot.layer, slot.expert) == nullptr) missing.push_back(slot);
  }
  std::sort(missing.begin(), missing.end());
  missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
  RETURN_IF_ERROR(CheckBudget(*held, missing.size()));
  ASSIGN_OR_RETURN(const auto experts,
                   LoadSlots(missing, options_.load, options));
  epoch_.store(epoch);
  if (!missing.empty()) Publish(held->With(missing, experts));
  return absl::OkStatus();
}

absl::Status ExpertContents::Unload(absl::Span<const ExpertSlot> slots,
                                    uint64_t epoch) {
  RETURN_IF_ERROR(CheckSlots(slots, *options_.model));
  MutexLock lock(&order_);
  RETURN_IF_ERROR(CheckEpoch(epoch));
  epoch_.store(epoch);
  std::shared_ptr<const ExpertWeights> held = weights_->Get();
  Publish(held->Without(slots));
  // Batches may be running with them. Nobody takes them up any more, so the
  // count only falls, and freeing them here spares the executor the time.
  while (held.use_count() > 1) absl::SleepFor(kInUsePoll);
  held.reset();
  return absl::OkStatus();
}

uint64_t ExpertContents::max_slots() const {
  return static_cast<uint64_t>(options_.model->num_layers) *
         static_cast<uint64_t>(options_.model->num_experts);
}

absl::Status ExpertContents::CheckEpoch(uint64_t epoch) const {
  const uint64_t obeyed = epoch_.load();
  if (epoch >= obeyed) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("the order's epoch ", epoch,
                                                    " is older than ", obeyed,
                                                    ", the last one obeyed"));
}

absl::Status ExpertContents::CheckBudget(const ExpertWeights& held,
                                         size_t more) const {
  const uint64_t budget = options_.memory_budget_bytes;
  if (budget == 0 || more == 0) return absl::OkStatus();
  const uint64_t room = budget - std::min<uint64_t>(budget, held.size_bytes());
  const uint64_t fit = room / options_.slot_bytes;
  if (more <= fit) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      more, " more experts of ", options_.slot_bytes, " bytes do not fit: the ",
      "budget of ", budget, " bytes (", options_.budget_flag, ") has room for ",
      fit, " beside the ", held.slots().size(), " held"));
}

void ExpertContents::Publish(std::shared_ptr<const ExpertWeights> weights) {
  if (metrics_.loaded_slots != nullptr) {
    metrics_.loaded_slots->Set(static_cast<double>(weights->slots().size()));
  }
  if (metrics_.memory_bytes != nullptr) {
    metrics_.memory_bytes->Set(static_cast<double>(weights->size_bytes()));
  }
  weights_->Replace(std::move(weights));
}

}  // namespace expertmesh::expert
