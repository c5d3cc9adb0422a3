#include "services/cli/load_view.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "services/checkpoint/expert_range.h"
#include "services/cli/expert_bars.h"

namespace expertmesh {
namespace {

constexpr size_t kHottest = 3;

// Ready services that hold each (layer, expert).
using Replicas = std::map<std::pair<uint32_t, uint32_t>, int>;

Replicas CountReplicas(const admin::v1::ListEndpointsResponse& endpoints) {
  Replicas replicas;
  for (const admin::v1::Endpoint& endpoint : endpoints.endpoints()) {
    if (endpoint.state() != "ready") continue;
    for (const admin::v1::HostedExperts& hosted : endpoint.hosted()) {
      for (const uint32_t expert : hosted.expert_ids()) {
        ++replicas[{hosted.layer(), expert}];
      }
    }
  }
  return replicas;
}

// "6 (3.5x, 2 replicas)  3 (2.1x)": experts by rows, over the layer's mean.
std::string HottestExperts(absl::Span<const uint64_t> rows, uint32_t layer,
                           const Replicas& replicas) {
  const uint64_t total = std::accumulate(rows.begin(), rows.end(), uint64_t{0});
  if (total == 0) return "idle";
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const size_t count = std::min(kHottest, order.size());
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](size_t a, size_t b) {
                      return rows[a] != rows[b] ? rows[a] > rows[b] : a < b;
                    });
  std::string text;
  const double mean = static_cast<double>(total) / rows.size();
  for (size_t i = 0; i < count && rows[order[i]] > 0; ++i) {
    absl::StrAppendFormat(&text, "%s%d (%.1fx", i == 0 ? "" : "  ", order[i],
                          rows[order[i]] / mean);
    const auto held = replicas.find({layer, static_cast<uint32_t>(order[i])});
    if (held != replicas.end() && held->second > 1) {
      absl::StrAppend(&text, ", ", held->second, " replicas");
    }
    absl::StrAppend(&text, ")");
  }
  return text;
}

void AppendLayers(const admin::v1::GetExpertLoadResponse& load,
                  const Replicas& replicas, size_t width, std::string* view) {
  constexpr size_t kFixedColumns = 52;  // all but the bars
  const size_t max_bars =
      width > kFixedColumns + 8 ? width - kFixedColumns : size_t{8};
  absl::StrAppend(
      view,
      "layer  rows       balance  load by expert, and the hottest (x mean)\n");
  for (const admin::v1::LayerLoad& layer : load.layers()) {
    const std::vector<uint64_t> rows(layer.rows().begin(), layer.rows().end());
    const uint64_t total =
        std::accumulate(rows.begin(), rows.end(), uint64_t{0});
    const uint64_t greatest =
        rows.empty() ? 0 : *std::max_element(rows.begin(), rows.end());
    const double balance =
        greatest == 0 ? 1.0
                      : static_cast<double>(total) / rows.size() / greatest;
    absl::StrAppendFormat(view, "%5d  %-9d  %7.2f  %s  %s\n", layer.layer(),
                          total, balance, Bars(rows, max_bars),
                          HottestExperts(rows, layer.layer(), replicas));
  }
}

void AppendEndpoints(const admin::v1::ListEndpointsResponse& endpoints,
                     std::string* view) {
  for (const admin::v1::Endpoint& endpoint : endpoints.endpoints()) {
    absl::StrAppendFormat(
        view, "%-21s  %-10s  %s  %s  %d rows in flight, %d queued",
        endpoint.address(), endpoint.state(), HostedText(endpoint.hosted()),
        BytesText(endpoint.memory_bytes()), endpoint.inflight_rows(),
        endpoint.queue_rows());
    if (endpoint.credit_rows() > 0) {
      absl::StrAppend(view, ", ", endpoint.credit_rows(), " credits");
    }
    if (!endpoint.reason().empty()) {
      absl::StrAppend(view, "  ", endpoint.reason());
    }
    absl::StrAppend(view, "\n");
  }
  if (endpoints.uncovered_slots() > 0) {
    absl::StrAppend(view, endpoints.uncovered_slots(),
                    " slots are hosted by no ready endpoint\n");
  }
}

}  // namespace

std::string LoadView(const admin::v1::GetExpertLoadResponse& load,
                     const admin::v1::ListEndpointsResponse& endpoints,
                     size_t width) {
  std::string view = absl::StrFormat(
      "%d running  %d waiting  %.1f tokens/s  KV cache %.0f%%  (last %.0f s)\n"
      "rows since start: %d primary, %d replica, %d waited, %d rerouted, %d "
      "dropped\n\n",
      load.requests_running(), load.requests_waiting(),
      load.tokens_per_second(), 100 * load.kv_cache_usage_ratio(),
      load.window_seconds(), load.rows_primary(), load.rows_replica(),
      load.rows_waited(), load.rows_rerouted(), load.rows_dropped());
  AppendLayers(load, CountReplicas(endpoints), width, &view);
  absl::StrAppend(&view, "\n");
  AppendEndpoints(endpoints, &view);
  return view;
}

std::string HostedText(
    const google::protobuf::RepeatedPtrField<admin::v1::HostedExperts>&
        hosted) {
  if (hosted.empty()) return "nothing";
  std::vector<std::string> ranges;
  for (const admin::v1::HostedExperts& layer : hosted) {
    ranges.push_back(FormatExpertList(std::vector<int64_t>(
        layer.expert_ids().begin(), layer.expert_ids().end())));
  }
  if (std::all_of(ranges.begin(), ranges.end(),
                  [&](const auto& range) { return range == ranges[0]; })) {
    return absl::StrCat("experts ", ranges[0], " of ", ranges.size(),
                        " layers");
  }
  std::string text = "experts";
  for (int i = 0; i < hosted.size(); ++i) {
    absl::StrAppend(&text, i == 0 ? " " : "; ", ranges[i], " of layer ",
                    hosted[i].layer());
  }
  return text;
}

std::string BytesText(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = bytes;
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat(unit == 0 ? "%.0f %s" : "%.1f %s", value,
                         kUnits[unit]);
}

}  // namespace expertmesh
