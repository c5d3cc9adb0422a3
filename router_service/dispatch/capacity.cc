#include "router_service/dispatch/capacity.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace expertmesh::router {

int64_t ExpertCapacity(const CapacityOptions& options, int64_t num_tokens,
                       int64_t top_k, int64_t num_experts) {
  constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
  if (!(options.capacity_factor > 0)) return kNoLimit;
  const double fair_share = static_cast<double>(num_tokens * top_k) /
                            static_cast<double>(num_experts);
  const double capacity = std::ceil(options.capacity_factor * fair_share);
  if (capacity >= 0x1p62) return kNoLimit;  // would not fit the integer
  return std::max(options.min_capacity, static_cast<int64_t>(capacity));
}

}  // namespace expertmesh::router
