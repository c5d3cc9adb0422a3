// Surveys and probes devices through the CUDA runtime.

#include <cuda_runtime.h>

#include "absl/strings/str_cat.h"
#include "expert_service/device/cuda_devices.h"
#include "expert_service/device/cuda_probe.h"

namespace expertmesh::expert {
namespace {

__global__ void Nothing() {}

cudaError_t RunNothing(int index) {
  const cudaError_t error = cudaSetDevice(index);
  if (error != cudaSuccess) return error;
  Nothing<<<1, 1>>>();
  const cudaError_t launch = cudaGetLastError();
  return launch != cudaSuccess ? launch : cudaDeviceSynchronize();
}

cudaError_t Describe(int index, CudaDevice* device) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) return error;
  device->index = index;
  device->name = properties.name;
  device->compute_major = properties.major;
  device->compute_minor = properties.minor;
  device->memory_bytes = properties.totalGlobalMem;
  char bus_id[32] = "";
  const cudaError_t found = cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, index);
  device->pci_bus_id = bus_id;
  return found;
}

}  // namespace

CudaSurvey SurveyCudaDevices() {
  CudaSurvey survey;
  survey.built = true;
  survey.runtime_version = CUDART_VERSION;
  cudaDriverGetVersion(&survey.driver_version);  // 0 where there is none
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) survey.error = cudaGetErrorString(error);
  for (int index = 0; error == cudaSuccess && index < count; ++index) {
    CudaDevice& device = survey.devices.emplace_back();
    const cudaError_t fault = Describe(index, &device);
    if (fault == cudaSuccess) continue;
    cudaGetLastError();  // others may do
    device.error = cudaGetErrorString(fault);
  }
  return survey;
}

absl::Status ProbeCudaDevice(int index) {
  const cudaError_t error = RunNothing(index);
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::FailedPreconditionError(cudaGetErrorString(error));
}

}  // namespace expertmesh::expert
