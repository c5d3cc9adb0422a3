#include "expert_service/weights/cached_expert.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/checkpoint/required_tensors.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

// A checksum over the first bytes of some tensors; not 0, which is none.
uint64_t SampleOf(const Checkpoint& checkpoint,
                  absl::Span<const TensorView> tensors) {
  std::string bytes;
  for (const TensorView& tensor : tensors) {
    bytes.append(
        reinterpret_cast<const char*>(tensor.data),
        std::min<size_t>(tensor.size_bytes(), kFingerprintSampleBytes));
    checkpoint.Release(tensor);
  }
  return std::max<uint64_t>(PackChecksum(bytes), 1);
}

}  // namespace

absl::StatusOr<PackedExpert> LoadCachedExpert(
    const Checkpoint& checkpoint, ExpertSlot slot,
    std::optional<WeightFormat> format, bool has_tensors, PackCache& cache,
    absl::FunctionRef<absl::StatusOr<PackedExpert>()> pack) {
  const int64_t hidden = checkpoint.config().hidden_size;
  const int64_t intermediate = checkpoint.config().expert_intermediate_size;
  const ExpertTensorNames names =
      checkpoint.family().ExpertNames(slot.layer, slot.expert);
  ASSIGN_OR_RETURN(const TensorView gate_proj,
                   checkpoint.Tensor(names.gate_proj, {intermediate, hidden}));
  ASSIGN_OR_RETURN(const TensorView up_proj,
                   checkpoint.Tensor(names.up_proj, {intermediate, hidden}));
  ASSIGN_OR_RETURN(const TensorView down_proj,
                   checkpoint.Tensor(names.down_proj, {hidden, intermediate}));
  const WeightFormat kept_as = format.value_or(FormatOf(gate_proj.dtype));
  const std::string name =
      absl::StrCat("layer", slot.layer, "-expert", slot.expert, ".",
                   format ? WeightFormatName(*format) : "stored");
  const uint64_t sample =
      has_tensors ? SampleOf(checkpoint, {gate_proj, up_proj, down_proj}) : 0;

  std::vector<PackedMatrix> kept = cache.Load(name, sample);
  if (kept.size() == 3 && IsPackedAs(kept[0], intermediate, hidden, kept_as) &&
      IsPackedAs(kept[1], intermediate, hidden, kept_as) &&
      IsPackedAs(kept[2], hidden, intermediate, kept_as)) {
    return PackedExpert{std::move(kept[0]), std::move(kept[1]),
                        std::move(kept[2])};
  }
  ASSIGN_OR_RETURN(PackedExpert expert, pack());
  cache.Store(name, sample,
              {expert.gate_proj, expert.up_proj, expert.down_proj});
  return expert;
}

}  // namespace expertmesh::expert
