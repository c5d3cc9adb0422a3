#include "expert_service/kernels/cuda/grouped_ffn_cuda.h"

#include <algorithm>
#include <array>
#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "expert_service/kernels/cuda/batch_slot.h"
#include "expert_service/kernels/cuda/cuda_expert.h"
#include "expert_service/kernels/cuda/cuda_memory.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

// Batches under way: one that runs, and one whose rows come or go.
constexpr int kSlots = 2;
// Rows below which launches take a good part of a batch's time.
constexpr int64_t kFewRows = 256;

int64_t MaxRowBytes(const GroupedFfnCudaOptions& options) {
  return CudaAligned(static_cast<int64_t>(
      RowReduction::MaxBytes(options.max_rows, options.shape.hidden_size)));
}

BatchSlot::Options SlotOptions(const GroupedFfnCudaOptions& options) {
  return {options.shape, options.max_rows, options.max_groups,
          MaxRowBytes(options) +
              MaxFfnTableBytes(options.max_rows, options.max_groups),
          MaxRowBytes(options)};
}

// The next of 1, 2, 3, 4, 6, 8, 12, 16, …, at most `most`.
int64_t RoundedUp(int64_t value, int64_t most) {
  int64_t power = 1;
  while (power < value) power *= 2;
  const int64_t between = power / 4 * 3;
  return std::min(value <= between ? between : power, most);
}

class GroupedFfnCuda final : public GroupedFfn {
 public:
  using Slots = std::array<std::unique_ptr<BatchSlot>, kSlots>;

  GroupedFfnCuda(const GroupedFfnCudaOptions& options, Slots slots)
      : options_(options), slots_(std::move(slots)) {
    experts_.reserve(static_cast<size_t>(options.max_groups));
  }

  // What libraries end belongs to the thread's device.
  ~GroupedFfnCuda() override { cudaSetDevice(options_.device); }

  int max_started() const override { return kSlots; }
  bool takes_any_memory() const override { return false; }
  bool adds_rows() const override { return true; }

  // Pinned, with room for a batch's tables behind its rows.
  RowBuffer NewRowBuffer(size_t bytes) override {
    const int64_t tables =
        MaxFfnTableBytes(options_.max_rows, options_.max_groups);
    auto buffer =
        AllocatePinned(std::max(CudaAligned(static_cast<int64_t>(bytes)),
                                MaxRowBytes(options_)) +
                       tables);
    if (!buffer.ok()) throw std::bad_alloc();
    row_buffers_.push_back(buffer->get());
    return *std::move(buffer);
  }

  absl::Status Start(const GroupedRows& rows) override {
    if (!fault_.ok()) return fault_;
    const int slot = (first_ + num_started_) % kSlots;
    const absl::Status status = Launch(rows, *slots_[slot]);
    if (!status.ok()) return Lose(status);
    is_empty_[slot] = rows.group_offsets.back() == 0;
    ++num_started_;
    return absl::OkStatus();
  }

  absl::Status Finish() override {
    const int slot = first_;
    first_ = (first_ + 1) % kSlots;
    --num_started_;
    if (!fault_.ok()) return fault_;
    if (is_empty_[slot]) return absl::OkStatus();
    const absl::Status status = slots_[slot]->Await();
    if (!status.ok()) return Lose(status);
    Observe(*slots_[slot]);
    return absl::OkStatus();
  }

 private:
  absl::Status Launch(const GroupedRows& rows, BatchSlot& slot) {
    RETURN_IF_ERROR(
        CudaStatus(cudaSetDevice(options_.device), "cudaSetDevice"));
    std::byte* const x = OwnRows(rows.x);
    std::byte* const y = OwnRows(rows.y);
    if (x == nullptr || y == nullptr) {
      return absl::InternalError("rows that are in no row buffer");
    }
    if (rows.group_offsets.back() == 0) return absl::OkStatus();
    experts_.clear();
    for (const LoadedExpert* expert : rows.experts) {
      experts_.push_back(&static_cast<const CudaExpert*>(expert)->view());
    }
    const FfnGroups groups = {experts_.data(), rows.group_offsets.data(),
                              static_cast<int64_t>(rows.experts.size()),
                              rows.reduction};
    BatchSlot::Batch batch;
    batch.is_small = IsSmall(groups);
    FfnRoom room = {groups.num_rows(), groups.num_groups};
    if (batch.is_small) {
      room = {RoundedUp(room.num_rows, options_.max_rows),
              RoundedUp(room.num_groups, options_.max_groups)};
    }
    batch.dtype = rows.dtype;
    batch.tables_at = CudaAligned(BytesOf(room.num_rows, rows.dtype));
    batch.tables = WriteFfnTables(groups, room, TileRowsOf(options_.shape),
                                  x + batch.tables_at);
    batch.input = x;
    batch.output = y;
    batch.output_bytes = OutputBytes(rows, groups.num_rows());
    if (options_.metrics.batch_rows != nullptr) {
      options_.metrics.batch_rows->Observe(
          static_cast<double>(groups.num_rows()));
    }
    return slot.Start(batch);
  }

  // Few rows, and all groups for the kernel of few rows.
  bool IsSmall(const FfnGroups& groups) const {
    if (groups.num_rows() > kFewRows) return false;
    for (int64_t g = 0; g < groups.num_groups; ++g) {
      const uint32_t rows =
          groups.group_offsets[g + 1] - groups.group_offsets[g];
      if (rows > static_cast<uint32_t>(TileRowsOf(options_.shape).small)) {
        return false;
      }
    }
    return true;
  }

  int64_t BytesOf(int64_t num_rows, DType dtype) const {
    return num_rows *
           static_cast<int64_t>(RowBytes(dtype, options_.shape.hidden_size));
  }

  // What goes back: rows, or lone rows and sums.
  int64_t OutputBytes(const GroupedRows& rows, int64_t num_rows) const {
    if (rows.reduction == nullptr) return BytesOf(num_rows, rows.dtype);
    const auto lone = static_cast<int64_t>(rows.reduction->lone_rows.size());
    const auto sums = static_cast<int64_t>(rows.reduction->num_sums());
    return static_cast<int64_t>(RowReduction::SumsAt(
               static_cast<size_t>(BytesOf(lone, rows.dtype)))) +
           BytesOf(sums, DType::kF32);
  }

  // The row buffer that begins there; null where none does.
  std::byte* OwnRows(const void* rows) const {
    const auto it = std::find(row_buffers_.begin(), row_buffers_.end(), rows);
    return it == row_buffers_.end() ? nullptr : *it;
  }

  void Observe(const BatchSlot& slot) const {
    const CudaMetrics& metrics = options_.metrics;
    if (metrics.kernel_seconds == nullptr) return;
    const BatchTimes times = slot.times();
    metrics.copy_in_seconds->Observe(absl::ToDoubleSeconds(times.copy_in));
    metrics.kernel_seconds->Observe(absl::ToDoubleSeconds(times.kernels));
    metrics.copy_out_seconds->Observe(absl::ToDoubleSeconds(times.copy_out));
    if (slot.used_graph()) metrics.graph_launches->Increment();
  }

  absl::Status Lose(const absl::Status& status) {
    fault_ =
        absl::InternalError(absl::StrCat("device lost: ", status.message()));
    for (const auto& slot : slots_) slot->Quiesce();
    return fault_;
  }

  const GroupedFfnCudaOptions options_;
  const Slots slots_;
  std::array<bool, kSlots> is_empty_ = {};
  std::vector<std::byte*> row_buffers_;
  std::vector<const CudaExpertView*> experts_;  // of the batch that starts
  int first_ = 0;                               // slot of the oldest under way
  int num_started_ = 0;
  absl::Status fault_;  // lasts
};

}  // namespace

int64_t GroupedFfnCudaBytes(const GroupedFfnCudaOptions& options) {
  return kSlots * BatchSlot::DeviceBytes(SlotOptions(options));
}

absl::StatusOr<std::unique_ptr<GroupedFfn>> MakeGroupedFfnCuda(
    const GroupedFfnCudaOptions& options) {
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(options.device), "cudaSetDevice"));
  GroupedFfnCuda::Slots slots;
  for (auto& slot : slots) {
    ASSIGN_OR_RETURN(slot, BatchSlot::Create(SlotOptions(options)));
  }
  return std::make_unique<GroupedFfnCuda>(options, std::move(slots));
}

}  // namespace expertmesh::expert
