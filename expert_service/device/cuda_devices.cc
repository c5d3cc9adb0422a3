#include "expert_service/device/cuda_devices.h"

#include "absl/strings/str_cat.h"
#include "expert_service/device/cuda_probe.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

// The oldest that the kernels are compiled for (CMAKE_CUDA_ARCHITECTURES).
constexpr int kOldestComputeMajor = 8;

absl::Status NoDevice(absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat("no CUDA device: ", why));
}

// 13000 → "13.0".
std::string VersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

// Drivers serve all runtimes of their own major version.
bool DriverTooOld(const CudaSurvey& survey) {
  return survey.driver_version / 1000 < survey.runtime_version / 1000;
}

}  // namespace

std::string ComputeCapability(const CudaDevice& device) {
  return absl::StrCat(device.compute_major, ".", device.compute_minor);
}

absl::StatusOr<CudaDevice> PickCudaDevice(const CudaSurvey& survey, int index) {
  if (!survey.built) return NoDevice("this binary was built without CUDA");
  if (survey.driver_version == 0) return NoDevice("no NVIDIA driver found");
  if (DriverTooOld(survey)) {
    return NoDevice(absl::StrCat(
        "the NVIDIA driver serves CUDA up to ",
        VersionText(survey.driver_version), ", and this binary needs ",
        VersionText(survey.runtime_version), "; install a newer driver"));
  }
  if (!survey.error.empty()) return NoDevice(survey.error);
  const auto count = static_cast<int>(survey.devices.size());
  if (count == 0) return NoDevice("the NVIDIA driver has none");
  if (index < 0 || index >= count) {
    return NoDevice(absl::StrCat("there is none with index ", index, ", only ",
                                 count, count == 1 ? " device" : " devices",
                                 " from index 0"));
  }
  const CudaDevice& device = survey.devices[index];
  if (!device.error.empty()) {
    return NoDevice(absl::StrCat("device ", index, ": ", device.error));
  }
  if (device.compute_major < kOldestComputeMajor) {
    return NoDevice(absl::StrCat(
        device.name, " has compute capability ", ComputeCapability(device),
        ", and the kernels need ", kOldestComputeMajor, ".0"));
  }
  return device;
}

absl::StatusOr<CudaDevice> FindCudaDevice(int index) {
  ASSIGN_OR_RETURN(CudaDevice device,
                   PickCudaDevice(SurveyCudaDevices(), index));
  const absl::Status probe = ProbeCudaDevice(index);
  if (probe.ok()) return device;
  return NoDevice(
      absl::StrCat(device.name, " runs no kernel: ", probe.message()));
}

}  // namespace expertmesh::expert
