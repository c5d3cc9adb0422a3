#include "expert_service/kernels/cuda/grouped_ffn_cuda.h"

#include <algorithm>
#include <array>
#include <new>
#include <vector>

#include "absl/strings/str_cat.h"
#include "expert_service/kernels/cuda/cuda_expert.h"
#include "expert_service/kernels/cuda/cuda_memory.h"
#include "services/core/clock.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

// Batches under way: one that runs, and one whose rows come or go.
constexpr int kSlots = 2;
// How long a batch's end is looked for before the thread sleeps: to be woken
// takes about as long, and a few rows are done by then.
constexpr absl::Duration kPoll = absl::Microseconds(50);

// Rows of the widest type: a single element is smaller than its scale.
int64_t MaxRowBytes(const GroupedFfnCudaOptions& options) {
  const int64_t hidden = options.shape.hidden_size;
  return options.max_rows *
         static_cast<int64_t>(std::max(RowBytes(DType::kF32, hidden),
                                       RowBytes(DType::kInt8, hidden)));
}

// A batch's rows, and behind them its tables.
int64_t InputBytes(const GroupedFfnCudaOptions& options) {
  return CudaAligned(MaxRowBytes(options)) +
         MaxFfnTableBytes(options.max_rows, options.max_groups);
}

// One batch's share of the device.
struct Slot {
  CudaStream stream;
  CudaEvent done;
  DeviceBuffer input;
  DeviceBuffer y;
  DeviceBuffer workspace;
};

absl::StatusOr<Slot> NewSlot(const GroupedFfnCudaOptions& options) {
  Slot slot;
  ASSIGN_OR_RETURN(slot.stream, NewCudaStream());
  ASSIGN_OR_RETURN(slot.done, NewCudaEvent());
  ASSIGN_OR_RETURN(slot.input, DeviceBuffer::Allocate(InputBytes(options)));
  ASSIGN_OR_RETURN(slot.y, DeviceBuffer::Allocate(MaxRowBytes(options)));
  ASSIGN_OR_RETURN(slot.workspace, DeviceBuffer::Allocate(FfnWorkspaceBytes(
                                       options.shape, options.max_rows)));
  return slot;
}

class GroupedFfnCuda final : public GroupedFfn {
 public:
  GroupedFfnCuda(const GroupedFfnCudaOptions& options,
                 std::array<Slot, kSlots> slots)
      : options_(options), slots_(std::move(slots)) {
    experts_.reserve(static_cast<size_t>(options.max_groups));
  }

  int max_started() const override { return kSlots; }
  bool takes_any_memory() const override { return false; }

  // Pinned, with room for a batch's tables behind its rows.
  RowBuffer NewRowBuffer(size_t bytes) override {
    const int64_t room =
        std::max(CudaAligned(static_cast<int64_t>(bytes)) +
                     MaxFfnTableBytes(options_.max_rows, options_.max_groups),
                 InputBytes(options_));
    auto buffer = AllocatePinned(room);
    if (!buffer.ok()) throw std::bad_alloc();
    row_buffers_.push_back(buffer->get());
    return *std::move(buffer);
  }

  absl::Status Start(const GroupedRows& rows) override {
    if (!fault_.ok()) return fault_;
    const Slot& slot = slots_[(first_ + num_started_) % kSlots];
    const absl::Status status = Launch(rows, slot);
    if (!status.ok()) return Lose(status);
    ++num_started_;
    return absl::OkStatus();
  }

  absl::Status Finish() override {
    const Slot& slot = slots_[first_];
    first_ = (first_ + 1) % kSlots;
    --num_started_;
    if (!fault_.ok()) return fault_;
    const absl::Status status = Await(slot);
    return status.ok() ? status : Lose(status);
  }

 private:
  absl::Status Launch(const GroupedRows& rows, const Slot& slot) {
    RETURN_IF_ERROR(
        CudaStatus(cudaSetDevice(options_.device), "cudaSetDevice"));
    std::byte* const x = OwnRows(rows.x);
    std::byte* const y = OwnRows(rows.y);
    if (x == nullptr || y == nullptr) {
      return absl::InternalError("rows that are in no row buffer");
    }
    experts_.clear();
    for (const LoadedExpert* expert : rows.experts) {
      experts_.push_back(&static_cast<const CudaExpert*>(expert)->view());
    }
    FfnBatch batch;
    batch.shape = options_.shape;
    batch.dtype = rows.dtype;
    batch.num_rows = rows.group_offsets.back();
    const int64_t row_bytes =
        batch.num_rows *
        static_cast<int64_t>(RowBytes(rows.dtype, options_.shape.hidden_size));
    const int64_t tables_at = CudaAligned(row_bytes);
    batch.tables = WriteFfnTables(experts_.data(), rows.group_offsets.data(),
                                  static_cast<int64_t>(rows.experts.size()),
                                  x + tables_at);
    batch.table_memory = slot.input.data() + tables_at;
    batch.x = slot.input.data();
    batch.y = slot.y.data();
    batch.workspace = slot.workspace.data();
    return Enqueue(batch, slot, x, tables_at + batch.tables.size_bytes, y,
                   row_bytes);
  }

  // There, the kernels, and back.
  static absl::Status Enqueue(const FfnBatch& batch, const Slot& slot,
                              const std::byte* input, int64_t input_bytes,
                              std::byte* y, int64_t y_bytes) {
    const cudaStream_t stream = slot.stream.get();
    if (batch.num_rows > 0) {
      RETURN_IF_ERROR(
          CudaStatus(cudaMemcpyAsync(slot.input.data(), input,
                                     static_cast<size_t>(input_bytes),
                                     cudaMemcpyHostToDevice, stream),
                     "cudaMemcpyAsync to the device"));
      RETURN_IF_ERROR(
          CudaStatus(LaunchGroupedFfn(batch, stream), "LaunchGroupedFfn"));
      RETURN_IF_ERROR(CudaStatus(
          cudaMemcpyAsync(y, slot.y.data(), static_cast<size_t>(y_bytes),
                          cudaMemcpyDeviceToHost, stream),
          "cudaMemcpyAsync from the device"));
    }
    return CudaStatus(cudaEventRecord(slot.done.get(), stream),
                      "cudaEventRecord");
  }

  static absl::Status Await(const Slot& slot) {
    const Clock& clock = *Clock::Real();
    const absl::Duration until = clock.Now() + kPoll;
    cudaError_t error = cudaEventQuery(slot.done.get());
    while (error == cudaErrorNotReady) {
      cudaGetLastError();  // it was none, but is kept as one
      error = clock.Now() < until ? cudaEventQuery(slot.done.get())
                                  : cudaEventSynchronize(slot.done.get());
    }
    return CudaStatus(error, "waiting for the kernels");
  }

  // The row buffer that begins there; null where none does.
  std::byte* OwnRows(const void* rows) const {
    const auto it = std::find(row_buffers_.begin(), row_buffers_.end(), rows);
    return it == row_buffers_.end() ? nullptr : *it;
  }

  // Rows that are still on their way must not meet the next ones.
  absl::Status Lose(const absl::Status& status) {
    fault_ =
        absl::InternalError(absl::StrCat("device lost: ", status.message()));
    for (const Slot& slot : slots_) cudaStreamSynchronize(slot.stream.get());
    return fault_;
  }

  const GroupedFfnCudaOptions options_;
  const std::array<Slot, kSlots> slots_;
  std::vector<std::byte*> row_buffers_;
  std::vector<const CudaExpertView*> experts_;  // of the batch that starts
  int first_ = 0;                               // slot of the oldest under way
  int num_started_ = 0;
  absl::Status fault_;  // lasts
};

}  // namespace

int64_t GroupedFfnCudaBytes(const GroupedFfnCudaOptions& options) {
  return kSlots * (InputBytes(options) + MaxRowBytes(options) +
                   FfnWorkspaceBytes(options.shape, options.max_rows));
}

absl::StatusOr<std::unique_ptr<GroupedFfn>> MakeGroupedFfnCuda(
    const GroupedFfnCudaOptions& options) {
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(options.device), "cudaSetDevice"));
  std::array<Slot, kSlots> slots;
  for (Slot& slot : slots) {
    ASSIGN_OR_RETURN(slot, NewSlot(options));
  }
  return std::make_unique<GroupedFfnCuda>(options, std::move(slots));
}

}  // namespace expertmesh::expert
