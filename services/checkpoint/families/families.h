#pragma once

// The model families that can be served. To add one: README.md.

#include <string>

#include "absl/strings/string_view.h"
#include "services/checkpoint/model_config.h"

namespace expertmesh {

// The family of config.json's model_type; nullptr when there is none. Lives as
// long as the process.
const ModelFamily* FindFamily(absl::string_view model_type);

// "mixtral, olmoe, …", for error messages.
std::string KnownFamilies();

// One per file of this folder.
const ModelFamily& MixtralFamily();
const ModelFamily& OlmoeFamily();
const ModelFamily& Qwen2MoeFamily();
const ModelFamily& Qwen3MoeFamily();

}  // namespace expertmesh
