#pragma once

// The two questions that only a binary with CUDA can put to a device; in others
// cuda_probe_none.cc answers.

#include "absl/status/status.h"
#include "expert_service/device/cuda_devices.h"

namespace expertmesh::expert {

// Runs an empty kernel on device `index` and waits for it.
// Errors: FAILED_PRECONDITION with what the runtime says.
absl::Status ProbeCudaDevice(int index);

}  // namespace expertmesh::expert
