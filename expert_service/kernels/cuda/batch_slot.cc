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
  std::unique_ptr<BatchSlot> slot(new BatchSlot(options));
  ASSIGN_OR_RETURN(slot->stream_, NewCudaStream());
  for (CudaEvent* event :
       {&slot->begun_, &slot->copied_, &slot->computed_, &slot->done_}) {
    ASSIGN_OR_RETURN(*event, NewCudaTimer());
  }
  ASSIGN_OR_RETURN(slot->input_, DeviceBuffer::Allocate(options.input_bytes));
  ASSIGN_OR_RETURN(slot->output_, DeviceBuffer::Allocate(options.output_bytes));
  ASSIGN_OR_RETURN(slot->workspace_, DeviceBuffer::Allocate(FfnWorkspaceBytes(
                                         options.shape, options.max_rows)));
  // Kernels compute what tables have room for, and copies take whole lines.
  for (const DeviceBuffer* buffer :
       {&slot->input_, &slot->output_, &slot->workspace_}) {
    RETURN_IF_ERROR(CudaStatus(
        cudaMemset(buffer->data(), 0, static_cast<size_t>(buffer->size())),
        "cudaMemset"));
  }
  if (options.shape.order == WeightOrder::kRows) {
    ASSIGN_OR_RETURN(slot->gemm_, GroupedGemm::Create(slot->stream_.get(),
                                                      options.max_groups));
  }
  return slot;
}

absl::Status BatchSlot::Start(const Batch& batch) {
  cudaStream_t const stream = stream_.get();
  const auto record = [&](const CudaEvent& event) {
    return CudaStatus(cudaEventRecord(event.get(), stream), "cudaEventRecord");
  };
  const int64_t input_bytes = batch.tables_at + batch.tables.size_bytes;
  RETURN_IF_ERROR(record(begun_));
  RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(input_.data(), batch.input,
                                             static_cast<size_t>(input_bytes),
                                             cudaMemcpyHostToDevice, stream),
                             "cudaMemcpyAsync to the device"));
  RETURN_IF_ERROR(record(copied_));
  RETURN_IF_ERROR(LaunchKernels(batch));
  RETURN_IF_ERROR(record(computed_));
  RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(batch.output, output_.data(),
                                 static_cast<size_t>(batch.output_bytes),
                                 cudaMemcpyDeviceToHost, stream),
                 "cudaMemcpyAsync from the device"));
  return record(done_);
}

absl::Status BatchSlot::LaunchKernels(const Batch& batch) {
  const FfnTables& tables = batch.tables;
  FfnBatch ffn;
  ffn.shape = options_.shape;
  ffn.dtype = batch.dtype;
  ffn.num_rows = tables.room.num_rows;
  ffn.tables = tables;
  ffn.table_memory = input_.data() + batch.tables_at;
  ffn.x = input_.data();
  ffn.y = output_.data();
  ffn.workspace = workspace_.data();
  ffn.gemm = gemm_.get();
  ffn.large_tiles = LargeTiles(tables, batch.input + batch.tables_at);
  const auto enqueue = [&] {
    return CudaStatus(LaunchGroupedFfn(ffn, stream_.get()), "LaunchGroupedFfn");
  };
  used_graph_ = false;
  if (batch.is_small) {
    const LaunchGraphs::Form form = {batch.dtype, tables.room.num_rows,
                                     tables.room.num_groups, tables.is_reduced};
    ASSIGN_OR_RETURN(used_graph_, graphs_.Launch(form, stream_.get(), enqueue));
  }
  return used_graph_ ? absl::OkStatus() : enqueue();
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
