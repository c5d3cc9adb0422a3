#include "tests/support/golden_file.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

namespace expertmesh::testing {

GoldenFile::GoldenFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  if (bytes.size() < 8) {
    std::cerr << "cannot read " << path << "\n";
    std::abort();
  }
  uint64_t header_size;
  std::memcpy(&header_size, bytes.data(), sizeof(header_size));
  const auto header = nlohmann::json::parse(bytes.substr(8, header_size));
  const char* data = bytes.data() + 8 + header_size;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const size_t begin = entry["data_offsets"][0];
    const size_t end = entry["data_offsets"][1];
    if (entry["dtype"] == "F32") {
      std::vector<float> values((end - begin) / sizeof(float));
      std::memcpy(values.data(), data + begin, end - begin);
      floats_[name] = std::move(values);
    } else if (entry["dtype"] == "I64") {
      std::vector<int64_t> values((end - begin) / sizeof(int64_t));
      std::memcpy(values.data(), data + begin, end - begin);
      ints_[name].assign(values.begin(), values.end());
    }
  }
}

}  // namespace expertmesh::testing
