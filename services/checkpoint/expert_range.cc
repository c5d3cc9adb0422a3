#include "services/checkpoint/expert_range.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "services/checkpoint/json_reader.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

absl::StatusOr<int64_t> ParseId(absl::string_view text, int64_t num_experts) {
  text = absl::StripAsciiWhitespace(text);
  int64_t id = 0;
  const bool digits = !text.empty() && std::all_of(text.begin(), text.end(),
                                                   absl::ascii_isdigit);
  if (!digits) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quoted(text), " is not an expert id"));
  }
  if (!absl::SimpleAtoi(text, &id) || id >= num_experts) {
    return absl::InvalidArgumentError(absl::StrCat(
        "there is no expert ", text, " (the model has ", num_experts, ")"));
  }
  return id;
}

// "7" or "0-3".
absl::StatusOr<ExpertRange> ParseRange(absl::string_view text,
                                       int64_t num_experts) {
  const std::pair<absl::string_view, absl::string_view> ends =
      absl::StrSplit(text, absl::MaxSplits('-', 1));
  const bool single = text.find('-') == absl::string_view::npos;
  ASSIGN_OR_RETURN(const int64_t first, ParseId(ends.first, num_experts));
  ASSIGN_OR_RETURN(const int64_t last,
                   ParseId(single ? ends.first : ends.second, num_experts));
  if (last < first) {
    return absl::InvalidArgumentError(
        absl::StrCat("the range ", text, " is reversed"));
  }
  return ExpertRange{first, last + 1};
}

}  // namespace

absl::StatusOr<std::vector<int64_t>> ParseExpertList(absl::string_view text,
                                                     int64_t num_experts) {
  const auto fault = [text](absl::string_view message) {
    return absl::InvalidArgumentError(
        absl::StrCat("expert list ", Quoted(text), ": ", message,
                     "; expected ids and ranges such as 0-3,7"));
  };
  std::vector<int64_t> experts;
  std::vector<bool> seen(
      static_cast<size_t>(std::max<int64_t>(0, num_experts)));
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const absl::StatusOr<ExpertRange> range = ParseRange(part, num_experts);
    if (!range.ok()) return fault(range.status().message());
    for (int64_t id = range->first; id < range->end; ++id) {
      if (seen[id])
        return fault(absl::StrCat("expert ", id, " is named twice"));
      seen[id] = true;
      experts.push_back(id);
    }
  }
  std::sort(experts.begin(), experts.end());
  return experts;
}

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
