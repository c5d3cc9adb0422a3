#pragma once

// The device that computes: what --device says, and what there is.

#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "expert_service/device/cuda_devices.h"
#include "services/linalg/weight_format.h"

namespace expertmesh::expert {

struct DeviceWish {
  enum class Kind { kAuto, kCpu, kCuda };
  Kind kind = Kind::kAuto;
  int cuda_index = 0;
};

// "auto", "cpu", "cuda", "cuda:1". Errors: INVALID_ARGUMENT naming these.
absl::StatusOr<DeviceWish> ParseDeviceWish(absl::string_view text);

struct Device {
  std::optional<CudaDevice> cuda;  // nothing: the CPU
  std::string why_cpu;             // where auto found nothing better
};

// Auto takes CUDA device 0 where there is one, else the CPU.
// Errors: those of `find`, where CUDA is asked for.
absl::StatusOr<Device> ChooseDevice(
    const DeviceWish& wish,
    absl::FunctionRef<absl::StatusOr<CudaDevice>(int)> find = FindCudaDevice);

// Whether a row's bits may depend on how many rows it is computed with. Only
// CUDA devices have a faster way that does, and for experts in bf16 only.
enum class Numerics { kInvariant, kFast };
// "invariant", "fast". Errors: INVALID_ARGUMENT naming these.
absl::StatusOr<Numerics> ParseNumerics(absl::string_view text);
// Whether `wish` makes a difference there.
bool IsFast(Numerics wish, const Device& device, WeightFormat format);

// One line, unless the CPU was asked for: the device, or why there is none.
void LogDevice(const Device& device);

// What the service announces. Equal numerics_ids mean equal bits: those of
// CUDA devices name the chip, because generations round differently within a
// tensor core's sum.
std::string DeviceKind(const Device& device);  // "cpu", "cuda"
std::string NumericsId(const Device& device, WeightFormat format,
                       Numerics numerics = Numerics::kInvariant);

}  // namespace expertmesh::expert
