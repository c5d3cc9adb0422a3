#pragma once

// The figures of one load level of a benchmark.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "services/cli/bench_client.h"

namespace expertmesh {

// Of some measured values; all zero where there are none.
struct Quantiles {
  uint64_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, max = 0;

  // Between two values the quantile is on the line between them.
  static Quantiles Of(std::vector<double> values);
};

// Only requests that ended well count in tokens, latencies and routing.
struct BenchSummary {
  double seconds = 0;
  uint64_t completed = 0;
  uint64_t failed = 0;
  uint64_t unfinished = 0;
  // Completed, but with fewer tokens than asked for (a stop string, the end of
  // the context).
  uint64_t cut_short = 0;
  struct Failure {
    uint64_t count = 0;
    std::string message;  // of the first one
  };
  std::map<std::string, Failure> failures;  // by status code

  uint64_t prompt_tokens = 0;
  uint64_t output_tokens = 0;

  // Seconds.
  Quantiles first_token;       // from the request's beginning
  Quantiles inter_token;       // tokens of one message came at once: 0
  Quantiles per_output_token;  // mean of a request, after its first token
  Quantiles end_to_end;
  Quantiles queue;  // as the server says

  // Assignments of tokens to experts.
  struct Routing {
    uint64_t primary = 0, replica = 0, waited = 0, rerouted = 0, dropped = 0;
    double gate_mass_kept = 1;  // mean by assignment
  };
  Routing routing;

  double client_cpu_share = 0;
  Quantiles client_delay;  // seconds

  uint64_t requests() const { return completed + failed + unfinished; }
  // `count` a second; 0 where no time has passed.
  double PerSecond(uint64_t count) const;
};

BenchSummary Summarize(const LoadResult& result);

// What to tell the user when the client itself may have been what was measured.
std::optional<std::string> ClientWarning(const BenchSummary& summary);

}  // namespace expertmesh
