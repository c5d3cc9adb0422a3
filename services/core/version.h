#pragma once

#include "absl/strings/string_view.h"

namespace expertmesh {

// The project's version, "0.1.0".
absl::string_view Version();

// "Release", "Debug", "RelWithDebInfo".
absl::string_view BuildType();

}  // namespace expertmesh
