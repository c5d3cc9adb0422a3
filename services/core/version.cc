#include "services/core/version.h"

namespace expertmesh {

absl::string_view Version() { return EXPERTMESH_VERSION; }
absl::string_view BuildType() { return EXPERTMESH_BUILD_TYPE; }

}  // namespace expertmesh
