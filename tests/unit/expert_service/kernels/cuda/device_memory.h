#pragma once

// Memory of a device for tests.

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

namespace expertmesh::expert {

// Owns so many bytes, which the emulation makes NaN at first.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) : size_(bytes) {
    EXPECT_EQ(cudaMalloc(&data_, bytes), cudaSuccess);
  }
  DeviceMemory(const void* from, size_t bytes) : DeviceMemory(bytes) {
    EXPECT_EQ(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
  }
  DeviceMemory& operator=(DeviceMemory&&) = delete;
  ~DeviceMemory() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }

  void* data() const { return data_; }

  // Waits for whatever still writes there.
  std::vector<std::byte> Read() const {
    std::vector<std::byte> bytes(size_);
    EXPECT_EQ(cudaMemcpy(bytes.data(), data_, size_, cudaMemcpyDeviceToHost),
              cudaSuccess);
    return bytes;
  }

 private:
  void* data_ = nullptr;
  size_t size_;
};

}  // namespace expertmesh::expert
