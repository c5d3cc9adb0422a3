#include "services/checkpoint/families/families.h"

#include <array>

#include "absl/strings/str_join.h"

namespace expertmesh {
namespace {

const auto& AllFamilies() {
  static const std::array<const ModelFamily*, 4> families = {
      &MixtralFamily(), &OlmoeFamily(), &Qwen2MoeFamily(), &Qwen3MoeFamily()};
  return families;
}

}  // namespace

const ModelFamily* FindFamily(absl::string_view model_type) {
  for (const ModelFamily* family : AllFamilies()) {
    if (family->model_type() == model_type) return family;
  }
  return nullptr;
}

std::string KnownFamilies() {
  return absl::StrJoin(
      AllFamilies(), ", ", [](std::string* out, const ModelFamily* family) {
        out->append(family->model_type().data(), family->model_type().size());
      });
}

}  // namespace expertmesh
