// For binaries without CUDA.

#include "expert_service/device/cuda_devices.h"
#include "expert_service/device/cuda_probe.h"

namespace expertmesh::expert {

CudaSurvey SurveyCudaDevices() { return {}; }

absl::Status ProbeCudaDevice(int index) {
  return absl::FailedPreconditionError("this binary was built without CUDA");
}

}  // namespace expertmesh::expert
