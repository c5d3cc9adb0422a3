#include "services/cli/bench_summary.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_format.h"

namespace expertmesh {
namespace {

// Above these the client's own thread may have been late to read or to send.
constexpr double kMostCpuShare = 0.8;
constexpr double kMostDelaySeconds = 0.010;

double Seconds(absl::Duration duration) {
  return absl::ToDoubleSeconds(duration);
}

double Quantile(const std::vector<double>& sorted, double share) {
  const double rank = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above],
                   rank - static_cast<double>(below));
}

// Collects what becomes Quantiles.
struct Latencies {
  std::vector<double> first_token, inter_token, per_output_token, end_to_end,
      queue;

  void Add(const RequestRecord& record) {
    end_to_end.push_back(Seconds(record.ended - record.begun));
    queue.push_back(record.last.timings().queue_seconds());
    if (record.tokens.empty()) return;
    first_token.push_back(Seconds(record.tokens.front() - record.begun));
    for (size_t i = 1; i < record.tokens.size(); ++i) {
      inter_token.push_back(Seconds(record.tokens[i] - record.tokens[i - 1]));
    }
    if (record.tokens.size() > 1) {
      per_output_token.push_back(
          Seconds(record.tokens.back() - record.tokens.front()) /
          static_cast<double>(record.tokens.size() - 1));
    }
  }
};

uint64_t Assignments(const v1::RoutingAccount& routing) {
  return uint64_t{routing.primary()} + routing.replica() + routing.waited() +
         routing.rerouted() + routing.dropped();
}

BenchSummary::Routing SumRouting(const std::vector<RequestRecord>& records) {
  BenchSummary::Routing sum;
  double assignments = 0;
  double kept = 0;
  for (const RequestRecord& record : records) {
    if (!record.status.ok()) continue;
    const v1::RoutingAccount& routing = record.last.routing();
    sum.primary += routing.primary();
    sum.replica += routing.replica();
    sum.waited += routing.waited();
    sum.rerouted += routing.rerouted();
    sum.dropped += routing.dropped();
    const auto weight = static_cast<double>(Assignments(routing));
    assignments += weight;
    kept += weight * routing.gate_mass_kept();
  }
  if (assignments > 0) sum.gate_mass_kept = kept / assignments;
  return sum;
}

void AddRequest(const RequestRecord& record, BenchSummary& summary) {
  if (!record.status.ok()) {
    ++summary.failed;
    auto& failure =
        summary.failures[absl::StatusCodeToString(record.status.code())];
    if (failure.count++ == 0)
      failure.message = std::string(record.status.message());
    return;
  }
  ++summary.completed;
  summary.prompt_tokens += record.last.usage().prompt_tokens();
  summary.output_tokens += record.tokens.size();
  if (record.tokens.size() < record.asked_tokens) ++summary.cut_short;
}

}  // namespace

Quantiles Quantiles::Of(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto count = static_cast<double>(values.size());
  return {.count = values.size(),
          .mean = std::accumulate(values.begin(), values.end(), 0.0) / count,
          .p50 = Quantile(values, 0.5),
          .p90 = Quantile(values, 0.9),
          .p95 = Quantile(values, 0.95),
          .p99 = Quantile(values, 0.99),
          .max = values.back()};
}

double BenchSummary::PerSecond(uint64_t count) const {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

BenchSummary Summarize(const LoadResult& result) {
  BenchSummary summary;
  summary.seconds = Seconds(result.elapsed);
  summary.unfinished = result.unfinished;
  Latencies latencies;
  for (const RequestRecord& record : result.records) {
    AddRequest(record, summary);
    if (record.status.ok()) latencies.Add(record);
  }
  summary.first_token = Quantiles::Of(std::move(latencies.first_token));
  summary.inter_token = Quantiles::Of(std::move(latencies.inter_token));
  summary.per_output_token =
      Quantiles::Of(std::move(latencies.per_output_token));
  summary.end_to_end = Quantiles::Of(std::move(latencies.end_to_end));
  summary.queue = Quantiles::Of(std::move(latencies.queue));
  summary.routing = SumRouting(result.records);
  summary.client_cpu_share = result.cpu_share;
  std::vector<double> delays;
  for (const absl::Duration delay : result.delays) {
    delays.push_back(Seconds(delay));
  }
  summary.client_delay = Quantiles::Of(std::move(delays));
  return summary;
}

std::optional<std::string> ClientWarning(const BenchSummary& summary) {
  if (summary.client_cpu_share <= kMostCpuShare &&
      summary.client_delay.p99 <= kMostDelaySeconds) {
    return std::nullopt;
  }
  return absl::StrFormat(
      "this client fell behind (its thread was busy %.0f%% of the time and up "
      "to %.0f ms late): part of the latency is its own",
      100 * summary.client_cpu_share, 1000 * summary.client_delay.max);
}

}  // namespace expertmesh
