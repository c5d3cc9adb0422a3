#pragma once

#include "absl/status/status.h"

namespace expertmesh {

// What becomes of anything that still waits when the launcher is told to stop.
inline absl::Status Stopping() {
  return absl::CancelledError("the launcher is stopping");
}

}  // namespace expertmesh
