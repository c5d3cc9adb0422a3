#pragma once

// golden.safetensors: recorded outputs of the reference implementation.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace expertmesh::testing {

// Tensors of one file as vectors, by name. Reads with code of its own, so that
// a fault in the product's reader does not hide here. Aborts the test program
// on a file it cannot read.
class GoldenFile {
 public:
  explicit GoldenFile(const std::string& path);

  bool Has(const std::string& name) const {
    return floats_.contains(name) || ints_.contains(name);
  }
  const std::vector<float>& Floats(const std::string& name) const {
    return floats_.at(name);
  }
  // As 32-bit ids; recorded as 64-bit.
  const std::vector<int32_t>& Ints(const std::string& name) const {
    return ints_.at(name);
  }

 private:
  std::map<std::string, std::vector<float>> floats_;
  std::map<std::string, std::vector<int32_t>> ints_;
};

}  // namespace expertmesh::testing
