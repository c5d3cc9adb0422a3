#pragma once

// What `describe --plan` prints: memory by service, before anything is loaded.

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace expertmesh {

// `model` is a checkpoint folder, `services` numbers of expert services; those
// above the number of experts are left out. Errors: those of Checkpoint::Open.
absl::StatusOr<std::string> PlanText(const std::string& model,
                                     absl::Span<const int64_t> services);
absl::StatusOr<std::string> PlanJson(const std::string& model,
                                     absl::Span<const int64_t> services);

}  // namespace expertmesh
