#include "expert_service/weights/expert_loader.h"

#include <atomic>
#include <new>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/mutex.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

absl::StatusOr<PackedMatrix> LoadMatrix(const Checkpoint& checkpoint,
                                        const std::string& name, int64_t n,
                                        int64_t k,
                                        std::optional<WeightFormat> format) {
  ASSIGN_OR_RETURN(const TensorView tensor, checkpoint.Tensor(name, {n, k}));
  checkpoint.Prefetch(tensor);
  absl::StatusOr<PackedMatrix> packed = PackedMatrix::Pack(
      tensor, format.value_or(FormatOf(tensor.dtype)),
      {.packed = [&](const TensorView& rows) { checkpoint.Release(rows); }});
  checkpoint.Release(tensor);
  if (packed.ok()) return packed;
  return absl::Status(packed.status().code(),
                      absl::StrCat(checkpoint.FileOf(name), ": tensor '", name,
                                   "': ", packed.status().message()));
}

// One kernel runs all three, so they have one type unless they are converted.
absl::Status CheckTypesAgree(const Checkpoint& checkpoint,
                             const ExpertTensorNames& names,
                             const ExpertTensors& tensors) {
  const DType wanted = tensors.gate_proj.dtype;
  const std::pair<const std::string&, DType> others[] = {
      {names.up_proj, tensors.up_proj.dtype},
      {names.down_proj, tensors.down_proj.dtype}};
  for (const auto& [name, dtype] : others) {
    if (dtype == wanted) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        checkpoint.FileOf(name), ": tensor '", name, "' is ", DTypeName(dtype),
        ", but '", names.gate_proj, "' is ", DTypeName(wanted),
        "; name one type to convert them to with --expert-dtype"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ExpertSlot>> SlotsToLoad(
    const ModelConfig& config, const std::vector<int64_t>& experts) {
  std::vector<bool> seen(static_cast<size_t>(config.num_experts));
  for (const int64_t expert : experts) {
    if (expert < 0 || expert >= config.num_experts) {
      return absl::InvalidArgumentError(absl::StrCat("there is no expert ",
                                                     expert, " (the model has ",
                                                     config.num_experts, ")"));
    }
    if (seen[expert]) {
      return absl::InvalidArgumentError(
          absl::StrCat("expert ", expert, " is named twice"));
    }
    seen[expert] = true;
  }
  std::vector<ExpertSlot> slots;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.layers[layer].is_moe) continue;
    for (const int64_t expert : experts) slots.push_back({layer, expert});
  }
  return slots;
}

// Counts finished slots and reports them in order.
class Progress {
 public:
  Progress(const SlotLoadOptions& options, int64_t total)
      : options_(options), total_(total) {}

  void SlotDone() {
    MutexLock lock(&mutex_);
    ++done_;
    if (options_.progress) options_.progress(done_, total_);
  }

 private:
  const SlotLoadOptions& options_;
  const int64_t total_;
  Mutex mutex_;
  int64_t done_ ABSL_GUARDED_BY(mutex_) = 0;
};

absl::StatusOr<ExpertWeights::Expert> LoadWithinMemory(
    const SlotLoader& load, ExpertSlot slot, const std::stop_token& stop) {
  // The experts held so far can serve on.
  const auto no_memory = [slot](absl::string_view why) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there is no memory left for expert ", slot.expert,
                     " of layer ", slot.layer, why));
  };
  try {
    auto expert = load(slot, stop);
    if (!absl::IsResourceExhausted(expert.status())) return expert;
    return no_memory(absl::StrCat(": ", expert.status().message()));
  } catch (const std::bad_alloc&) {
    return no_memory("");
  }
}

}  // namespace

absl::StatusOr<ExpertTensors> TensorsOf(const Checkpoint& checkpoint,
                                        ExpertSlot slot,
                                        std::optional<WeightFormat> format) {
  const int64_t hidden = checkpoint.config().hidden_size;
  const int64_t intermediate = checkpoint.config().expert_intermediate_size;
  const ExpertTensorNames names =
      checkpoint.family().ExpertNames(slot.layer, slot.expert);
  ExpertTensors tensors;
  ASSIGN_OR_RETURN(tensors.gate_proj,
                   checkpoint.Tensor(names.gate_proj, {intermediate, hidden}));
  ASSIGN_OR_RETURN(tensors.up_proj,
                   checkpoint.Tensor(names.up_proj, {intermediate, hidden}));
  ASSIGN_OR_RETURN(tensors.down_proj,
                   checkpoint.Tensor(names.down_proj, {hidden, intermediate}));
  if (!format) RETURN_IF_ERROR(CheckTypesAgree(checkpoint, names, tensors));
  return tensors;
}

absl::StatusOr<PackedExpert> LoadExpert(const Checkpoint& checkpoint,
                                        ExpertSlot slot,
                                        std::optional<WeightFormat> format) {
  const ModelConfig& config = checkpoint.config();
  const int64_t hidden = config.hidden_size;
  const int64_t intermediate = config.expert_intermediate_size;
  const ExpertTensorNames names =
      checkpoint.family().ExpertNames(slot.layer, slot.expert);
  RETURN_IF_ERROR(TensorsOf(checkpoint, slot, format).status());
  PackedExpert expert;
  ASSIGN_OR_RETURN(expert.gate_proj, LoadMatrix(checkpoint, names.gate_proj,
                                                intermediate, hidden, format));
  ASSIGN_OR_RETURN(expert.up_proj, LoadMatrix(checkpoint, names.up_proj,
                                              intermediate, hidden, format));
  ASSIGN_OR_RETURN(expert.down_proj, LoadMatrix(checkpoint, names.down_proj,
                                                hidden, intermediate, format));
  return expert;
}

absl::StatusOr<ExpertWeights::Expert> AsLoaded(
    absl::StatusOr<PackedExpert> expert) {
  if (!expert.ok()) return expert.status();
  return std::make_shared<const PackedExpert>(*std::move(expert));
}

absl::StatusOr<std::vector<ExpertWeights::Expert>> LoadSlots(
    absl::Span<const ExpertSlot> slots, const SlotLoader& load,
    const SlotLoadOptions& options) {
  const auto count = static_cast<int64_t>(slots.size());
  std::vector<absl::Status> statuses(slots.size());
  std::vector<ExpertWeights::Expert> experts(slots.size());
  std::atomic<bool> failed = false;
  Progress progress(options, count);

  const auto given_up = [] {
    return absl::CancelledError("loading was given up");
  };
  const auto load_one = [&](int64_t i) -> absl::Status {
    if (options.stop.stop_requested()) return given_up();
    ASSIGN_OR_RETURN(experts[i],
                     LoadWithinMemory(load, slots[i], options.stop));
    progress.SlotDone();
    return absl::OkStatus();
  };
  const auto body = [&](int64_t i) {
    if (failed.load(std::memory_order_relaxed)) return;
    statuses[i] = load_one(i);
    if (!statuses[i].ok()) failed.store(true, std::memory_order_relaxed);
  };
  if (options.pool != nullptr) {
    options.pool->ParallelFor(count, body);
  } else {
    for (int64_t i = 0; i < count; ++i) body(i);
  }
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  if (options.stop.stop_requested()) return given_up();
  return experts;
}

absl::StatusOr<std::unique_ptr<const ExpertWeights>> LoadExperts(
    const Checkpoint& checkpoint, const ExpertLoadOptions& options) {
  const ModelConfig& config = checkpoint.config();
  ASSIGN_OR_RETURN(std::vector<ExpertSlot> slots,
                   SlotsToLoad(config, options.experts));
  // Found by the headers, before minutes of loading.
  if (!options.format) {
    for (const ExpertSlot& slot : slots) {
      RETURN_IF_ERROR(TensorsOf(checkpoint, slot, options.format).status());
    }
  }
  ASSIGN_OR_RETURN(
      std::vector<ExpertWeights::Expert> experts,
      LoadSlots(slots,
                [&](ExpertSlot slot, const std::stop_token&) {
                  return AsLoaded(LoadExpert(checkpoint, slot, options.format));
                },
                {.pool = options.pool, .progress = options.progress}));
  return std::make_unique<const ExpertWeights>(
      config.num_layers, config.num_experts, std::move(slots),
      std::move(experts));
}

absl::StatusOr<WeightFormat> PackedFormat(const Checkpoint& checkpoint,
                                          std::optional<WeightFormat> format) {
  if (format.has_value()) return *format;
  const ModelConfig& config = checkpoint.config();
  int64_t layer = 0;
  while (!config.layers[layer].is_moe) ++layer;  // some layer is
  ASSIGN_OR_RETURN(
      const TensorView tensor,
      checkpoint.Tensor(checkpoint.family().ExpertNames(layer, 0).gate_proj,
                        {config.expert_intermediate_size, config.hidden_size}));
  return FormatOf(tensor.dtype);
}

}  // namespace expertmesh::expert
