#pragma once

// Kernels of batches of one form, queued by one call each.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "expert_service/kernels/cuda/cuda_memory.h"
#include "services/core/dtype.h"

namespace expertmesh::expert {

// Where launches take as long as kernels, those of a batch are recorded once
// for each form of batch, and queued as a whole from then on. A form's first
// batch goes without: it may be the last, and kernels are loaded with their
// first launch, which is no time to record. One thread.
class LaunchGraphs {
 public:
  // All that launches of a batch depend on, but for the contents of memory.
  struct Form {
    DType dtype;
    int64_t room_rows;
    int64_t room_groups;
    bool is_reduced;

    friend bool operator==(const Form&, const Form&) = default;
    template <typename H>
    friend H AbslHashValue(H h, const Form& f) {
      return H::combine(std::move(h), f.dtype, f.room_rows, f.room_groups,
                        f.is_reduced);
    }
  };

  // More are not kept; batches of further forms are queued one by one.
  static constexpr size_t kMaxForms = 256;

  // Queues what `enqueue` queues in `stream`; false with a form's first batch,
  // where there is no room for a further form, and once a form could not be
  // recorded, which is logged: nothing was queued then. Errors: of launching.
  absl::StatusOr<bool> Launch(const Form& form, cudaStream_t stream,
                              absl::FunctionRef<absl::Status()> enqueue);

 private:
  static absl::StatusOr<CudaGraph> Record(
      cudaStream_t stream, absl::FunctionRef<absl::Status()> enqueue);

  absl::flat_hash_map<Form, CudaGraph> graphs_;  // null: seen once
  bool is_off_ = false;
};

}  // namespace expertmesh::expert
