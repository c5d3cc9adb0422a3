#include "expert_service/kernels/cuda/batch_slot.h"

#include "services/core/clock.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

// How long a batch's end is looked for before the thread sleeps: to be woken
// takes about as long, and a few rows are done by then.
constexpr absl::Duration kPoll = absl::Microseconds(50);

absl::Duration Between(const CudaEvent& begin, const CudaEvent& end) {
  float milliseconds = 0;
  if (cudaEventElapsedTime(&milliseconds, begin.get(), end.get()) !=
      cudaSuccess) {
    cudaGetLastError();
    return absl::ZeroDuration();
  }
  return absl::Milliseconds(static_cast<double>(milliseconds));
}

}  // namespace

int64_t BatchSlot::DeviceBytes(const Options& options) {
  const int64_t bytes = options.input_bytes + options.output_bytes +
                        FfnWorkspaceBytes(options.shape, options.max_rows);
  return options.shape.order == WeightOrder::kRows
             ? bytes + GroupedGemm::DeviceBytes()
             : bytes;
}

absl::StatusOr<std::unique_ptr<BatchSlot>> BatchSlot::Create(
    const Options& options) {
  std::unique_ptr<BatchSlot> slot(new BatchSlot);
  slot->options_ = options;
  ASSIGN_OR_RETURN(slot->stream_, NewCudaStream());
  for (CudaEvent* event :
       {&slot->begun_, &slot->copied_, &slot->computed_, &slot->done_}) {
    ASSIGN_OR_RETURN(*event, NewCudaTimer());
  }
  ASSIGN_OR_RETURN(slot->input_, DeviceBuffer::Allocate(options.input_bytes));
  ASSIGN_OR_RETURN(slot->output_, DeviceBuffer::Allocate(options.output_bytes));
  ASSIGN_OR_RETURN(slot->workspace_, DeviceBuffer::Allocate(FfnWorkspaceBytes(
                                         options.shape, options.max_rows)));
  if (options.shape.order == WeightOrder::kRows) {
    ASSIGN_OR_RETURN(slot->gemm_, GroupedGemm::Create(slot->stream_.get(),
                                                      options.max_groups));
  }
  return slot;
}

absl::Status BatchSlot::Start(const Batch& batch) {
  cudaStream_t const stream = stream_.get();
  used_graph_ = false;
  RETURN_IF_ERROR(
      CudaStatus(cudaEventRecord(begun_.get(), stream), "cudaEventRecord"));
  if (batch.is_repeated) {
    const LaunchGraphs::Form form = {batch.dtype,
                                     batch.tables.room.num_rows,
                                     batch.tables.room.num_groups,
                                     batch.tables.is_reduced,
                                     batch.input,
                                     batch.output,
                                     batch.output_bytes};
    // A graph's own event, not one between its launches.
    ASSIGN_OR_RETURN(used_graph_, graphs_.Launch(form, stream, [&] {
      return Enqueue(batch, cudaEventRecordExternal);
    }));
  }
  if (!used_graph_) {
    RETURN_IF_ERROR(Enqueue(batch, cudaEventRecordDefault));
  }
  return CudaStatus(cudaEventRecord(done_.get(), stream), "cudaEventRecord");
}

absl::Status BatchSlot::Enqueue(const Batch& batch, unsigned record_flags) {
  cudaStream_t const stream = stream_.get();
  const auto record = [&](const CudaEvent& event) {
    return CudaStatus(
        cudaEventRecordWithFlags(event.get(), stream, record_flags),
        "cudaEventRecordWithFlags");
  };
  FfnBatch ffn;
  ffn.shape = options_.shape;
  ffn.dtype = batch.dtype;
  ffn.num_rows = batch.tables.room.num_rows;
  ffn.tables = batch.tables;
  ffn.table_memory = input_.data() + batch.tables_at;
  ffn.x = input_.data();
  ffn.y = output_.data();
  ffn.workspace = workspace_.data();
  ffn.gemm = gemm_.get();
  ffn.large_tiles = LargeTiles(batch.tables, batch.input + batch.tables_at);
  RETURN_IF_ERROR(CudaStatus(
      cudaMemcpyAsync(
          input_.data(), batch.input,
          static_cast<size_t>(batch.tables_at + batch.tables.size_bytes),
          cudaMemcpyHostToDevice, stream),
      "cudaMemcpyAsync to the device"));
  RETURN_IF_ERROR(record(copied_));
  RETURN_IF_ERROR(
      CudaStatus(LaunchGroupedFfn(ffn, stream), "LaunchGroupedFfn"));
  RETURN_IF_ERROR(record(computed_));
  return CudaStatus(cudaMemcpyAsync(batch.output, output_.data(),
                                    static_cast<size_t>(batch.output_bytes),
                                    cudaMemcpyDeviceToHost, stream),
                    "cudaMemcpyAsync from the device");
}

absl::Status BatchSlot::Await() {
  const Clock& clock = *Clock::Real();
  const absl::Duration until = clock.Now() + kPoll;
  cudaError_t error = cudaEventQuery(done_.get());
  while (error == cudaErrorNotReady) {
    cudaGetLastError();  // it was none, but is kept as one
    error = clock.Now() < until ? cudaEventQuery(done_.get())
                                : cudaEventSynchronize(done_.get());
  }
  return CudaStatus(error, "waiting for the kernels");
}

BatchTimes BatchSlot::times() const {
  return {Between(begun_, copied_), Between(copied_, computed_),
          Between(computed_, done_)};
}

void BatchSlot::Quiesce() { cudaStreamSynchronize(stream_.get()); }

}  // namespace expertmesh::expert
