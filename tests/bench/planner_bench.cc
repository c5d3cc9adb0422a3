// Placements: how even, and how long they take to plan. Counters are those of
// PlacementQuality: `slowest` is the slowest host's busy rows over the mean,
// summed over layers; `balancedness` the mean over layers.

#include <benchmark/benchmark.h>

#include <numeric>

#include "router_service/control/planner.h"
#include "tests/support/expert_loads.h"

namespace expertmesh {
namespace {

using router::EvaluatePlacement;
using router::PlacementPlan;
using router::PlacementProblem;
using router::PlacementQuality;
using router::PlanPlacement;

constexpr int64_t kLayers = 61;
constexpr int64_t kExperts = 256;
constexpr int64_t kSlots = 320;

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) /
         static_cast<double>(values.size());
}

void Report(benchmark::State& state, const PlacementQuality& quality,
            const std::string& name) {
  state.counters[name + "_balancedness"] = Mean(quality.host_balancedness);
  state.counters[name + "_slowest"] = quality.slowest_over_mean;
}

// Plans until the timer has enough; the last plan is returned.
PlacementPlan Plan(benchmark::State& state, const PlacementProblem& problem) {
  PlacementPlan last;
  for (auto _ : state) {
    auto plan = PlanPlacement(problem, {});
    if (!plan.ok()) {
      state.SkipWithError(std::string(plan.status().message()).c_str());
      return {};
    }
    last = *std::move(plan);
  }
  return last;
}

// Arguments: kind of load, hosts.
void BM_PlanFromNothing(benchmark::State& state) {
  const auto kind = static_cast<LoadKind>(state.range(0));
  const PlacementProblem problem =
      EqualHosts(SyntheticLoad(kind, kLayers, kExperts), kLayers,
                 static_cast<int>(state.range(1)), kSlots);
  const PlacementPlan plan = Plan(state, problem);
  state.SetLabel(LoadKindName(kind));
  Report(state, plan.after, "planned");
  Report(state,
         EvaluatePlacement(problem, ContiguousPlacement(problem, kSlots)),
         "contiguous");
}
BENCHMARK(BM_PlanFromNothing)
    ->ArgsProduct({{0, 1, 2, 3}, {8, 32, 64}})
    ->Unit(benchmark::kMillisecond);

// A placement planned for one demand, then another: every slot's rows times a
// factor from 0.7 to 1.3.
void BM_PlanAgain(benchmark::State& state) {
  const auto kind = static_cast<LoadKind>(state.range(0));
  PlacementProblem problem =
      EqualHosts(SyntheticLoad(kind, kLayers, kExperts), kLayers,
                 static_cast<int>(state.range(1)), kSlots);
  const auto first = PlanPlacement(problem, {});
  for (size_t h = 0; h < problem.hosts.size(); ++h) {
    problem.hosts[h].hosted = first->hosted[h];
  }
  for (size_t i = 0; i < problem.rows.size(); ++i) {
    problem.rows[i] *= 0.7 + 0.6 * static_cast<double>(i * 37 % 101) / 100;
  }
  const PlacementPlan plan = Plan(state, problem);
  state.SetLabel(LoadKindName(kind));
  Report(state, plan.before, "before");
  Report(state, plan.after, "after");
  int64_t model_bytes = 0;
  for (const int64_t bytes : problem.slot_bytes) {
    model_bytes += bytes * kExperts;
  }
  state.counters["loaded_share"] = static_cast<double>(plan.bytes_to_load) /
                                   static_cast<double>(model_bytes);
}
BENCHMARK(BM_PlanAgain)
    ->ArgsProduct({{0, 1, 2, 3}, {8, 32}})
    ->Unit(benchmark::kMillisecond);

// Ten thousand hosts of some slots each; then again with other demand.
// Arguments: slots per host, whether something is there already.
void BM_PlanTenThousandHosts(benchmark::State& state) {
  constexpr int kHosts = 10'000;
  PlacementProblem problem =
      EqualHosts(SyntheticLoad(LoadKind::kZipf, kLayers, kExperts), kLayers,
                 kHosts, kSlots);
  for (auto& host : problem.hosts) {
    host.budget_bytes = state.range(0) * problem.slot_bytes[0];
  }
  if (state.range(1) != 0) {
    const auto first = PlanPlacement(problem, {});
    for (size_t h = 0; h < problem.hosts.size(); ++h) {
      problem.hosts[h].hosted = first->hosted[h];
    }
    problem.rows = SyntheticLoad(LoadKind::kLogNormal, kLayers, kExperts);
  }
  const PlacementPlan plan = Plan(state, problem);
  Report(state, plan.after, "planned");
}
BENCHMARK(BM_PlanTenThousandHosts)
    ->ArgsProduct({{2, 8}, {0, 1}})
    ->Unit(benchmark::kMillisecond);

// The demo model's recorded loads: four fixed hosts that hold all experts, and
// a managed pool with a quarter more slots on this many hosts.
void BM_HotPool(benchmark::State& state) {
  static const char* const kTexts[] = {"play", "novel", "speech", "programs",
                                       "chat"};
  const char* text = kTexts[state.range(0)];
  PlacementProblem problem = EqualHosts(RecordedLoad(text), 4, 4, 16);
  const router::HostedSlots base = ContiguousPlacement(problem, 16);
  for (int h = 0; h < 4; ++h) {
    problem.hosts[h].managed = false;
    problem.hosts[h].hosted = base[h];
  }
  const int64_t num_hot = state.range(1);
  for (int64_t h = 0; h < num_hot; ++h) {
    router::PlacementHost host = problem.hosts[0];
    host.managed = true;
    host.hosted = {};
    host.budget_bytes = 16 / num_hot * problem.slot_bytes[0];
    host.speed = 1.0 / static_cast<double>(num_hot);
    problem.hosts.push_back(host);
  }
  const PlacementPlan plan = Plan(state, problem);
  state.SetLabel(text);
  Report(state, plan.before, "before");
  Report(state, plan.after, "after");
}
BENCHMARK(BM_HotPool)
    ->ArgsProduct({{0, 1, 2, 3, 4}, {1}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace expertmesh
