#include "services/text/metaspace.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::text {

absl::StatusOr<MetaspacePrepend> ParseMetaspacePrepend(
    const ConfigNode& config) {
  ASSIGN_OR_RETURN(const bool add_space,
                   config.GetBool("add_prefix_space", true));
  if (!config.Has("prepend_scheme")) {
    return add_space ? MetaspacePrepend::kAlways : MetaspacePrepend::kNever;
  }
  ASSIGN_OR_RETURN(const std::string name, config.GetString("prepend_scheme"));
  if (!add_space && name != "never") {
    return config.Error("add_prefix_space contradicts prepend_scheme");
  }
  if (name == "always") return MetaspacePrepend::kAlways;
  if (name == "first") return MetaspacePrepend::kFirst;
  if (name == "never") return MetaspacePrepend::kNever;
  return config.Error(
      absl::StrCat("prepend_scheme ", name, " is not supported"));
}

}  // namespace expertmesh::text
