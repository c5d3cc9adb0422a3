#include "services/checkpoint/expert_range.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh {

std::string FormatExpertList(absl::Span<const int64_t> experts) {
  std::string text;
  for (size_t i = 0; i < experts.size();) {
    size_t last = i;
    while (last + 1 < experts.size() &&
           experts[last + 1] == experts[last] + 1) {
      ++last;
    }
    absl::StrAppend(&text, i == 0 ? "" : ",", experts[i]);
    if (last > i) absl::StrAppend(&text, "-", experts[last]);
    i = last + 1;
  }
  return text;
}

absl::StatusOr<std::vector<ExpertRange>> SplitExperts(int64_t num_experts,
                                                      int64_t num_services) {
  if (num_services < 1 || num_services > num_experts) {
    return absl::InvalidArgumentError(
        absl::StrCat(num_experts, " experts cannot be split over ",
                     num_services, " services; use 1 to ", num_experts));
  }
  std::vector<ExpertRange> ranges;
  int64_t first = 0;
  for (int64_t i = 0; i < num_services; ++i) {
    const int64_t size =
        num_experts / num_services + (i < num_experts % num_services ? 1 : 0);
    ranges.push_back({first, first + size});
    first += size;
  }
  return ranges;
}

absl::StatusOr<std::vector<std::vector<int64_t>>> SpreadExperts(
    int64_t num_experts, int64_t num_services, int64_t replicas) {
  ASSIGN_OR_RETURN(const std::vector<ExpertRange> ranges,
                   SplitExperts(num_experts, num_services));
  if (replicas < 1 || replicas > num_services) {
    return absl::InvalidArgumentError(
        absl::StrCat(replicas,
                     " replicas of every expert need as many "
                     "services; there are ",
                     num_services));
  }
  std::vector<std::vector<int64_t>> experts(num_services);
  for (int64_t service = 0; service < num_services; ++service) {
    for (int64_t i = 0; i < replicas; ++i) {
      const ExpertRange& range = ranges[(service + i) % num_services];
      for (int64_t id = range.first; id < range.end; ++id) {
        experts[service].push_back(id);
      }
    }
    std::sort(experts[service].begin(), experts[service].end());
  }
  return experts;
}

}  // namespace expertmesh
