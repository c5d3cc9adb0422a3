#include "router_service/api/stop_strings.h"

#include <algorithm>
#include <utility>

namespace expertmesh::router {
namespace {

// Length of the longest suffix of `text` that begins `stop`.
size_t PartialMatch(absl::string_view text, absl::string_view stop) {
  for (size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) == stop.substr(0, n)) return n;
  }
  return 0;
}

}  // namespace

std::string StopStrings::Push(absl::string_view text) {
  if (found_) return "";
  held_.append(text.data(), text.size());
  size_t end = std::string::npos;
  size_t hold = 0;
  for (const std::string& stop : stops_) {
    end = std::min(end, held_.find(stop));
    hold = std::max(hold, PartialMatch(held_, stop));
  }
  if (end != std::string::npos) {
    found_ = true;
    return held_.substr(0, end);
  }
  std::string shown = held_.substr(0, held_.size() - hold);
  held_.erase(0, held_.size() - hold);
  return shown;
}

std::string StopStrings::Flush() {
  return found_ ? "" : std::exchange(held_, "");
}

}  // namespace expertmesh::router
