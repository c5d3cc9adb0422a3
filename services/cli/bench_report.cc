#include "services/cli/bench_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace expertmesh {
namespace {

std::string Milliseconds(double seconds) {
  return absl::StrFormat("%.2f", 1000 * seconds);
}

std::vector<std::string> QuantileRow(const std::string& name,
                                     const Quantiles& quantiles) {
  std::vector<std::string> row = {absl::StrCat("  ", name)};
  for (const double value : {quantiles.mean, quantiles.p50, quantiles.p90,
                             quantiles.p95, quantiles.p99, quantiles.max}) {
    row.push_back(quantiles.count > 0 ? Milliseconds(value) : "-");
  }
  return row;
}

std::string LatencyText(const BenchSummary& summary) {
  return AlignedText(
      {{"  latency, ms", "mean", "p50", "p90", "p95", "p99", "max"},
       QuantileRow("to first token", summary.first_token),
       QuantileRow("between tokens", summary.inter_token),
       QuantileRow("per output token", summary.per_output_token),
       QuantileRow("end to end", summary.end_to_end),
       QuantileRow("queued in server", summary.queue)});
}

std::string ThroughputText(const BenchSummary& summary) {
  const uint64_t tokens = summary.prompt_tokens + summary.output_tokens;
  return AlignedText(
      {{"  throughput", "requests", "prompt tokens", "output tokens",
        "all tokens"},
       {"  in all", absl::StrCat(summary.completed),
        absl::StrCat(summary.prompt_tokens),
        absl::StrCat(summary.output_tokens), absl::StrCat(tokens)},
       {"  a second",
        absl::StrFormat("%.2f", summary.PerSecond(summary.completed)),
        absl::StrFormat("%.1f", summary.PerSecond(summary.prompt_tokens)),
        absl::StrFormat("%.1f", summary.PerSecond(summary.output_tokens)),
        absl::StrFormat("%.1f", summary.PerSecond(tokens))}});
}

std::string RoutingText(const BenchSummary::Routing& routing) {
  return absl::StrFormat(
      "  rows: %d primary, %d replica, %d waited, %d rerouted, %d dropped; "
      "gate mass kept %.4f\n",
      routing.primary, routing.replica, routing.waited, routing.rerouted,
      routing.dropped, routing.gate_mass_kept);
}

std::string FailuresText(const BenchSummary& summary) {
  std::string text;
  for (const auto& [code, failure] : summary.failures) {
    absl::StrAppend(&text, "  failed: ", failure.count, " with ", code, " (",
                    failure.message, ")\n");
  }
  if (summary.unfinished > 0) {
    absl::StrAppend(&text, "  unfinished: ", summary.unfinished, "\n");
  }
  if (summary.cut_short > 0) {
    absl::StrAppend(&text, "  fewer tokens than asked for: ", summary.cut_short,
                    " requests\n");
  }
  return text;
}

// "p50 / p99" in milliseconds.
std::string HalfAndTail(const Quantiles& quantiles) {
  if (quantiles.count == 0) return "-";
  return absl::StrCat(Milliseconds(quantiles.p50), " / ",
                      Milliseconds(quantiles.p99));
}

}  // namespace

std::string AlignedText(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  std::string text;
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string blanks(widths[i] - row[i].size(), ' ');
      // No blanks at the end of a line.
      if (i == 0) {
        absl::StrAppend(&text, row[i], row.size() > 1 ? blanks : "");
      } else {
        absl::StrAppend(&text, "  ", blanks, row[i]);
      }
    }
    absl::StrAppend(&text, "\n");
  }
  return text;
}

std::string SettingsText(const BenchSettings& settings) {
  const v1::Model& model = settings.model;
  const RequestOptions& requests = settings.requests;
  const std::string prompts =
      settings.texts_file.empty()
          ? absl::StrCat(requests.prompt_tokens.text(), " random tokens")
          : absl::StrCat("the texts of ", settings.texts_file);
  const std::string prefix =
      requests.shared_prefix_tokens == 0
          ? ""
          : absl::StrCat(" after ", requests.shared_prefix_tokens,
                         " shared ones");
  return absl::StrFormat(
      "model     %s (%s, %d experts a layer, top-%d), numerics %s, version "
      "%s\n"
      "requests  prompts: %s%s; output: %s tokens; seed %d; warm-up: %d "
      "requests a level\n",
      model.name(), model.model_type(), model.num_experts(), model.top_k(),
      model.numerics_id(), model.version(), prompts, prefix,
      requests.output_tokens.text(), requests.seed, settings.warmup_requests);
}

std::string LevelText(const LevelReport& level) {
  const BenchSummary& summary = level.summary;
  return absl::StrCat(absl::StrFormat("%s: %d requests in %.2f s, %d failed\n",
                                      level.load.Name(), summary.requests(),
                                      summary.seconds, summary.failed),
                      ThroughputText(summary), LatencyText(summary),
                      RoutingText(summary.routing), FailuresText(summary));
}

std::string ComparisonText(const std::vector<LevelReport>& levels) {
  std::vector<std::vector<std::string>> rows = {
      {"load", "failed", "requests/s", "output tokens/s", "all tokens/s",
       "first token p50 / p99, ms", "between tokens", "end to end"}};
  for (const LevelReport& level : levels) {
    const BenchSummary& summary = level.summary;
    rows.push_back(
        {level.load.Name(), absl::StrCat(summary.failed),
         absl::StrFormat("%.2f", summary.PerSecond(summary.completed)),
         absl::StrFormat("%.1f", summary.PerSecond(summary.output_tokens)),
         absl::StrFormat("%.1f", summary.PerSecond(summary.prompt_tokens +
                                                   summary.output_tokens)),
         HalfAndTail(summary.first_token), HalfAndTail(summary.inter_token),
         HalfAndTail(summary.end_to_end)});
  }
  return AlignedText(rows);
}

}  // namespace expertmesh
