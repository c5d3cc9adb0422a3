// What dispatch costs the router for each row, at 256 experts of which a
// token takes 8, over endpoints that answer at once. Counters are nanoseconds
// of CPU time per row: `plan` builds the plan, `send` and `finish` are
// Dispatcher::Begin and Finish, `combine` sums up; `total` is all of it.

#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "router_service/dispatch/combine.h"
#include "router_service/dispatch/dispatcher.h"

namespace expertmesh::router {
namespace {

constexpr int64_t kExperts = 256;
constexpr int64_t kTopK = 8;
constexpr int kEndpoints = 8;
constexpr int64_t kMaxTokens = 512;

// Endpoints that answer a batch at once with rows of nothing.
class InstantTransport final : public ExpertTransport {
 public:
  void Send(int endpoint, const ExpertBatch& batch,
            BatchCompletion* completion) override {
    const ZeroRows rows(batch.hidden_size * DTypeBytes(batch.dtype));
    ++num_batches;
    BatchAnswer answer;
    answer.rows = &rows;
    completion->Done(answer);
  }
  int64_t num_batches = 0;

 private:
  struct ZeroRows final : AnsweredRows {
    explicit ZeroRows(size_t row_bytes) : row_bytes(row_bytes) {}
    void Copy(size_t first, size_t last, std::byte* out) const override {
      std::memset(out, 0, (last - first) * row_bytes);
    }
    void CopySum(size_t, std::byte*) const override {}  // none is asked for
    const size_t row_bytes;
  };
};

ModelConfig Config() {
  ModelConfig config;
  config.num_experts = kExperts;
  config.top_k = kTopK;
  config.norm_topk_prob = true;
  return config;
}

// An expert is at one endpoint with 31 neighbours, its second copy elsewhere.
std::shared_ptr<const Placement> Place(int replicas) {
  auto placement = std::make_shared<Placement>(1, kExperts);
  for (int64_t expert = 0; expert < kExperts; ++expert) {
    for (int replica = 0; replica < replicas; ++replica) {
      const int64_t first = expert * kEndpoints / kExperts;
      placement->Add(0, expert,
                     static_cast<int>((first + replica) % kEndpoints));
    }
  }
  return placement;
}

// Experts alike, or the r-th as likely as 1/r.
Routing Route(const Gate& gate, int64_t num_tokens, bool is_skewed) {
  Routing routing;
  routing.num_tokens = num_tokens;
  routing.num_experts = kExperts;
  routing.top_k = kTopK;
  routing.scores.resize(num_tokens * kExperts);
  routing.topk_ids.resize(num_tokens * kTopK);
  routing.topk_weights.resize(num_tokens * kTopK);
  routing.policy.assign(num_tokens, OverflowPolicy::kWait);
  std::mt19937 random(1);
  std::extreme_value_distribution<float> gumbel;
  std::vector<int> rank(kExperts);
  std::iota(rank.begin(), rank.end(), 1);
  std::shuffle(rank.begin(), rank.end(), random);
  for (int64_t token = 0; token < num_tokens; ++token) {
    const absl::Span<float> scores(&routing.scores[token * kExperts], kExperts);
    for (int64_t expert = 0; expert < kExperts; ++expert) {
      scores[expert] =
          gumbel(random) -
          (is_skewed ? std::log(static_cast<float>(rank[expert])) : 0.0f);
    }
    gate.Score(scores, scores);
    gate.Choose(scores, {},
                absl::MakeSpan(&routing.topk_ids[token * kTopK], kTopK),
                absl::MakeSpan(&routing.topk_weights[token * kTopK], kTopK));
  }
  return routing;
}

// Adds the time this thread ran since the last lap.
class Laps {
 public:
  void Lap(double* nanoseconds) {
    const double now = Now();
    *nanoseconds += now - last_;
    last_ = now;
  }

 private:
  static double Now() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) * 1e9 +
           static_cast<double>(now.tv_nsec);
  }
  double last_ = Now();
};

// Arguments: tokens, replicas of each expert, whether routing is skewed, hidden
// size. With a hidden size of 16 it is bookkeeping only.
void BM_Dispatch(benchmark::State& state) {
  const int64_t tokens = state.range(0);
  const int64_t hidden = state.range(3);
  const Gate gate(Config());
  const Routing routing = Route(gate, tokens, state.range(2) != 0);
  DispatchPlanner planner(&gate, CapacityOptions());
  PlacementTable table(Place(static_cast<int>(state.range(1))));
  InstantTransport transport;
  DispatcherOptions options;
  options.wire_dtype = DType::kBF16;
  options.hidden_size = hidden;
  options.max_tokens = kMaxTokens;
  options.top_k = kTopK;
  Dispatcher dispatcher(options, &table, &transport);
  DispatchTicket ticket(options);
  const std::vector<float> hidden_states(tokens * hidden, 1.0f);
  Buffer y(tokens * hidden * sizeof(float));
  std::vector<uint16_t> replicas;
  DispatchPlan plan;
  double plan_ns = 0, send_ns = 0, finish_ns = 0, combine_ns = 0;
  const auto exchange = [&] {
    Laps laps;
    dispatcher.CountReplicas(0, &replicas);
    planner.Build(routing, replicas, &plan);
    laps.Lap(&plan_ns);
    dispatcher.Begin(0, hidden_states.data(), plan, &ticket);
    laps.Lap(&send_ns);
    dispatcher.Finish(&ticket, [](uint32_t) { return true; });
    laps.Lap(&finish_ns);
    Combine(plan, kTopK, ticket.outputs(), hidden, 0, tokens, y.as<float>());
    laps.Lap(&combine_ns);
  };
  for (int i = 0; i < 20; ++i) exchange();  // memory is mapped, times are known
  plan_ns = send_ns = finish_ns = combine_ns = 0;
  transport.num_batches = 0;
  for (auto _ : state) exchange();
  const double rows = static_cast<double>(state.iterations() * tokens * kTopK);
  state.counters["plan"] = plan_ns / rows;
  state.counters["send"] = send_ns / rows;
  state.counters["finish"] = finish_ns / rows;
  state.counters["combine"] = combine_ns / rows;
  state.counters["total"] = (plan_ns + send_ns + finish_ns + combine_ns) / rows;
  state.counters["waves"] = static_cast<double>(plan.num_waves());
  state.counters["messages"] = static_cast<double>(transport.num_batches) /
                               static_cast<double>(state.iterations());
}
BENCHMARK(BM_Dispatch)
    ->ArgNames({"tokens", "replicas", "skewed", "hidden"})
    ->ArgsProduct({{1, 16, 128, 512}, {1, 2}, {0, 1}, {16, 2048}});

}  // namespace
}  // namespace expertmesh::router
