#pragma once

// Writes safetensors files and whole small checkpoints, sound or broken.

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/string_view.h"
#include "services/core/dtype.h"

namespace expertmesh::testing {

// A folder of its own, removed with everything in it at the end.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string File(absl::string_view name) const;

 private:
  std::string path_;
};

void WriteFile(const std::string& path, absl::string_view bytes);
std::string ReadFile(const std::string& path);

struct StoredTensor {
  std::string name;
  std::string dtype;  // as spelled in the file
  std::vector<int64_t> shape;
  std::string bytes;
};

// Length, header and data as given, whether they fit together or not.
std::string SafetensorsBytes(absl::string_view header, absl::string_view data);
// A sound file.
std::string SafetensorsBytes(const std::vector<StoredTensor>& tensors);

// A checkpoint folder in the making: change a part, then write it.
struct CheckpointParts {
  nlohmann::json config;
  nlohmann::json generation_config;  // null: no such file
  std::vector<StoredTensor> tensors;

  StoredTensor& Tensor(absl::string_view name);
  void Remove(absl::string_view name);

  void Write(const std::string& folder) const;
  // model-0000i-of-0000n.safetensors and their index; tensors take turns.
  void WriteSharded(const std::string& folder, int num_shards) const;
};

// All tensors that `config` calls for, with small values that differ from
// element to element and tensor to tensor. `config` must be of a known family.
CheckpointParts MakeCheckpoint(nlohmann::json config,
                               DType dtype = DType::kF32);

// A small model of each family: 2 layers, 8 experts, top-2, hidden size 16.
nlohmann::json TinyConfig(absl::string_view model_type);

}  // namespace expertmesh::testing
