#include "expert_service/device/device_choice.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "services/core/log.h"
#include "services/linalg/gemm.h"

namespace expertmesh::expert {

absl::StatusOr<DeviceWish> ParseDeviceWish(absl::string_view text) {
  if (text == "auto") return DeviceWish{DeviceWish::Kind::kAuto};
  if (text == "cpu") return DeviceWish{DeviceWish::Kind::kCpu};
  if (text == "cuda") return DeviceWish{DeviceWish::Kind::kCuda};
  DeviceWish wish{DeviceWish::Kind::kCuda};
  absl::string_view index = text;
  if (absl::ConsumePrefix(&index, "cuda:") &&
      absl::SimpleAtoi(index, &wish.cuda_index) && wish.cuda_index >= 0) {
    return wish;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", text, "' is not one of auto, cpu, cuda, cuda:N"));
}

absl::StatusOr<Device> ChooseDevice(
    const DeviceWish& wish,
    absl::FunctionRef<absl::StatusOr<CudaDevice>(int)> find) {
  if (wish.kind == DeviceWish::Kind::kCpu) return Device{};
  auto found = find(wish.cuda_index);
  if (found.ok()) return Device{*std::move(found), ""};
  if (wish.kind == DeviceWish::Kind::kCuda) return found.status();
  return Device{std::nullopt, std::string(found.status().message())};
}

void LogDevice(const Device& device) {
  if (device.cuda.has_value()) {
    Log(LogLevel::kInfo, "computing on a CUDA device",
        {{"index", device.cuda->index},
         {"name", device.cuda->name},
         {"compute_capability", ComputeCapability(*device.cuda)},
         {"memory_bytes", device.cuda->memory_bytes}});
  } else if (!device.why_cpu.empty()) {
    Log(LogLevel::kInfo, "computing on the CPU", {{"why", device.why_cpu}});
  }
}

std::string DeviceKind(const Device& device) {
  return device.cuda.has_value() ? "cuda" : "cpu";
}

absl::StatusOr<Numerics> ParseNumerics(absl::string_view text) {
  if (text == "invariant") return Numerics::kInvariant;
  if (text == "fast") return Numerics::kFast;
  return absl::InvalidArgumentError(
      absl::StrCat("'", text, "' is not one of invariant, fast"));
}

bool IsFast(Numerics wish, const Device& device, WeightFormat format) {
  return wish == Numerics::kFast && device.cuda.has_value() &&
         format == WeightFormat::kBF16;
}

std::string NumericsId(const Device& device, WeightFormat format,
                       Numerics numerics) {
  const absl::string_view name = WeightFormatName(format);
  if (!device.cuda.has_value()) {
    return absl::StrCat("cpu-", SumOrder(format), "-", name, "-v2");
  }
  const bool by_tensor_cores =
      format != WeightFormat::kF32 && format != WeightFormat::kF16;
  const absl::string_view by = IsFast(numerics, device, format) ? "cublas-"
                               : by_tensor_cores                ? "mma-"
                                                                : "lanes-";
  return absl::StrCat("cuda-sm", device.cuda->compute_major,
                      device.cuda->compute_minor, "-", by, name, "-v1");
}

}  // namespace expertmesh::expert
