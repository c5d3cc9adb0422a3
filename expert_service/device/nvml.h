#pragma once

// What NVIDIA's management library says of one GPU. The library comes with the
// driver and is loaded at run time, so that nothing needs it to start.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace expertmesh::expert {

// Thread-safe.
class Nvml {
 public:
  static constexpr char kLibrary[] = "libnvidia-ml.so.1";

  // `pci_bus_id`: as CudaDevice has it.
  // Errors: UNAVAILABLE where the library, one of its functions or the device
  // is missing, or the library does not start.
  static absl::StatusOr<std::unique_ptr<Nvml>> Open(
      const std::string& pci_bus_id, const std::string& library = kLibrary);

  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  // Nothing for what the device does not tell, as the utilisation of a part of
  // a GPU.
  struct Reading {
    std::optional<uint64_t> memory_used_bytes;
    std::optional<uint64_t> memory_total_bytes;
    std::optional<double> utilization;  // 0 to 1: part of the time it computed
    std::optional<double> temperature_celsius;
  };
  Reading Read() const;

 private:
  struct Functions;

  explicit Nvml(std::unique_ptr<const Functions> functions);

  std::unique_ptr<const Functions> functions_;
  void* device_ = nullptr;  // nvmlDevice_t
};

}  // namespace expertmesh::expert
