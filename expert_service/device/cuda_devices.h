#pragma once

// Which CUDA devices there are, and whether this binary can use them.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace expertmesh::expert {

struct CudaDevice {
  int index = 0;     // as cudaSetDevice takes it
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int compute_major = 0;
  int compute_minor = 0;
  uint64_t memory_bytes = 0;  // all of it, free or not
  std::string pci_bus_id;     // "0000:65:00.0"
  std::string error;          // of asking for these; "": none
};

// What the CUDA runtime and the driver say.
struct CudaSurvey {
  bool built = false;       // the binary has a CUDA backend
  int runtime_version = 0;  // that the binary was built with: 13000 for 13.0
  int driver_version = 0;   // newest that the driver serves; 0: no driver
  std::string error;        // of counting the devices; "": none
  std::vector<CudaDevice> devices;
};

// Asks the driver. In binaries without CUDA: a survey that says so.
CudaSurvey SurveyCudaDevices();

// Errors: FAILED_PRECONDITION, one line that holds "no CUDA device" and why:
// built without CUDA, no driver, a driver older than the runtime, no device, no
// such index, a device too old for the kernels.
absl::StatusOr<CudaDevice> PickCudaDevice(const CudaSurvey& survey, int index);

// Picks from a survey, then runs an empty kernel on the device, which finds
// those that cannot run this binary's code. Takes a context on the device.
// Errors: as PickCudaDevice.
absl::StatusOr<CudaDevice> FindCudaDevice(int index);

// "9.0".
std::string ComputeCapability(const CudaDevice& device);

}  // namespace expertmesh::expert
