#pragma once

// Which experts a service holds.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace expertmesh {

// Ascending ids → "0-3,7".
std::string FormatExpertList(absl::Span<const int64_t> experts);

// Experts [first, end).
struct ExpertRange {
  int64_t first = 0;
  int64_t end = 0;

  int64_t size() const { return end - first; }
};

// Splits experts over services into contiguous ranges, none empty, whose sizes
// differ by at most one (larger ones first).
// Errors: INVALID_ARGUMENT unless 1 ≤ num_services ≤ num_experts.
absl::StatusOr<std::vector<ExpertRange>> SplitExperts(int64_t num_experts,
                                                      int64_t num_services);

// The same with every expert on `replicas` services: each service holds a range
// of its own and those of the services after it, so that what a lost one held
// is spread over others. Returns each service's experts, ascending.
// Errors: as SplitExperts; INVALID_ARGUMENT unless 1 ≤ replicas ≤ num_services.
absl::StatusOr<std::vector<std::vector<int64_t>>> SpreadExperts(
    int64_t num_experts, int64_t num_services, int64_t replicas);

}  // namespace expertmesh
