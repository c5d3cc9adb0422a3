#pragma once

// What tests tell the emulated device. Process-wide.

#include <cstddef>
#include <cstdint>

#include "tests/support/cuda_emulation/cuda_runtime.h"

namespace expertmesh::cuda_emulation {

// Calls that may fail are counted from here on: all of cuda_runtime.h that
// return an error, and launches; not those that free or only ask.
struct Fault {
  int64_t call = 0;  // the call that fails, 1 being the next
  cudaError_t error = cudaErrorLaunchFailure;
  bool lasting = false;  // so do all behind it, as after a fault of a kernel
};

// Replaces what was planned before and begins to count anew.
void PlanFault(const Fault& fault);
// No call fails any more.
void ClearFault();
// Since the last PlanFault or ClearFault.
int64_t CallsCounted();

// As cudaGetDeviceCount and cudaMemGetInfo tell; allocations beyond fail. At
// first there is one device with 1 GiB.
void SetDeviceCount(int count);
void SetDeviceMemory(size_t bytes);

// Whether cuBLAS can be loaded, as it can at first.
void SetCublas(bool is_there);
bool HasCublas();

// Whether what is queued there becomes part of a graph.
bool IsRecording(cudaStream_t stream);

// Of device memory that is allocated now.
size_t DeviceBytesInUse();

}  // namespace expertmesh::cuda_emulation
