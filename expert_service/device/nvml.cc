#include "expert_service/device/nvml.h"

#include <dlfcn.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace expertmesh::expert {
namespace {

// Of nvml.h, which comes with toolkits that builds without CUDA lack.
using Code = int;
constexpr Code kSuccess = 0;
constexpr int kTemperatureOfGpu = 0;

struct Memory {
  unsigned long long total_bytes;
  unsigned long long free_bytes;
  unsigned long long used_bytes;
};

struct Utilization {
  unsigned int gpu_percent;
  unsigned int memory_percent;
};

struct CloseLibrary {
  void operator()(void* library) const { dlclose(library); }
};

}  // namespace

struct Nvml::Functions {
  std::unique_ptr<void, CloseLibrary> library;
  Code (*init)() = nullptr;
  Code (*shutdown)() = nullptr;
  Code (*find)(const char* pci_bus_id, void** device) = nullptr;
  Code (*memory)(void* device, Memory* memory) = nullptr;
  Code (*utilization)(void* device, Utilization* utilization) = nullptr;
  Code (*temperature)(void* device, int sensor,
                      unsigned int* celsius) = nullptr;

  // Whether the library has all of them.
  bool Load() {
    return Load("nvmlInit_v2", &init) && Load("nvmlShutdown", &shutdown) &&
           Load("nvmlDeviceGetHandleByPciBusId_v2", &find) &&
           Load("nvmlDeviceGetMemoryInfo", &memory) &&
           Load("nvmlDeviceGetUtilizationRates", &utilization) &&
           Load("nvmlDeviceGetTemperature", &temperature);
  }

  template <typename Function>
  bool Load(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library.get(), name));
    return *function != nullptr;
  }
};

absl::StatusOr<std::unique_ptr<Nvml>> Nvml::Open(const std::string& pci_bus_id,
                                                 const std::string& library) {
  const auto unavailable = [&library](absl::string_view why) {
    return absl::UnavailableError(absl::StrCat(library, ": ", why));
  };
  auto functions = std::make_unique<Functions>();
  functions->library.reset(dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL));
  if (functions->library == nullptr) return unavailable("cannot be loaded");
  if (!functions->Load()) return unavailable("lacks a function");
  if (functions->init() != kSuccess) return unavailable("does not start");
  std::unique_ptr<Nvml> nvml(new Nvml(std::move(functions)));
  if (nvml->functions_->find(pci_bus_id.c_str(), &nvml->device_) != kSuccess) {
    return unavailable(absl::StrCat("does not know device ", pci_bus_id));
  }
  return nvml;
}

Nvml::Nvml(std::unique_ptr<const Functions> functions)
    : functions_(std::move(functions)) {}

Nvml::~Nvml() { functions_->shutdown(); }

Nvml::Reading Nvml::Read() const {
  Reading reading;
  Memory memory = {};
  if (functions_->memory(device_, &memory) == kSuccess) {
    reading.memory_used_bytes = memory.used_bytes;
    reading.memory_total_bytes = memory.total_bytes;
  }
  Utilization utilization = {};
  if (functions_->utilization(device_, &utilization) == kSuccess) {
    reading.utilization = utilization.gpu_percent / 100.0;
  }
  unsigned int celsius = 0;
  if (functions_->temperature(device_, kTemperatureOfGpu, &celsius) ==
      kSuccess) {
    reading.temperature_celsius = celsius;
  }
  return reading;
}

}  // namespace expertmesh::expert
