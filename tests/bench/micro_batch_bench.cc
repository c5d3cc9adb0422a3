// Two micro-batches in turn over one: tokens per second by batch size, the
// router on CPU 0 and its expert service on CPU 1, and what `auto` makes of it.
//   micro_batch_bench [CHECKPOINT] [ROUNDS]
// Rounds alternate between the three. What could be won is told beside it, by
// times of one process on one CPU: a step's own work and its experts' work, of
// the whole batch and of half of it. Two micro-batches take no less than twice
// the longer of the two for half of it.

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "tests/bench/measure.h"
#include "tests/bench/model_steps.h"
#include "tests/support/remote_model.h"

namespace expertmesh::testing {
namespace {

constexpr int64_t kMaxSeqs = 64;
constexpr int kRouterCpu = 0;
constexpr int kExpertCpu = 1;

// Tokens per second of some steps of so many tokens.
using Measure =
    std::function<double(LocalModel*, int64_t, router::RoutingObserver*)>;

double Decode(LocalModel* model, int64_t num_seqs,
              router::RoutingObserver* observer) {
  return DecodeTokensPerSecond(model, num_seqs, 8, observer);
}

double Prefill(LocalModel* model, int64_t tokens,
               router::RoutingObserver* observer) {
  return PrefillTokensPerSecond(model, 1, tokens, observer);
}

class StepCounter final : public router::RoutingObserver {
 public:
  void OnLayer(int64_t layer, int64_t first_token, const router::Routing&,
               const router::DispatchPlan&) override {
    if (layer != 0) return;
    ++(first_token == 0 ? steps_ : seconds_);
  }
  double steps() const { return static_cast<double>(steps_); }
  // Of all steps, those in two parts.
  double share_in_two() const {
    return static_cast<double>(seconds_) / steps();
  }

 private:
  int64_t steps_ = 0;
  int64_t seconds_ = 0;  // second parts
};

// Adds up the time that batches take.
class TimedTransport final : public router::ExpertTransport {
 public:
  explicit TimedTransport(router::ExpertTransport* transport)
      : transport_(*transport) {}
  void Send(int endpoint, const router::ExpertBatch& batch,
            router::BatchCompletion* completion) override {
    seconds += Seconds([&] { transport_.Send(endpoint, batch, completion); });
  }
  double seconds = 0;

 private:
  router::ExpertTransport& transport_;
};

// One process whose experts' work is timed apart.
struct TimedModel {
  static absl::StatusOr<std::unique_ptr<TimedModel>> Load(
      const std::string& directory, LocalModelOptions options) {
    auto out = std::make_unique<TimedModel>();
    ASSIGN_OR_RETURN(out->experts, LocalModel::Load(directory, options));
    out->transport =
        std::make_unique<TimedTransport>(out->experts->local_transport.get());
    options.transport = out->transport.get();
    options.placement = out->experts->local_placement.get();
    ASSIGN_OR_RETURN(out->model, LocalModel::Load(directory, options));
    return out;
  }

  // Milliseconds of a step.
  struct Times {
    double own;
    double experts;
  };
  Times OfStep(const Measure& measure, int64_t tokens) {
    std::vector<double> own, experts_only;
    for (int i = 0; i < 6; ++i) {
      StepCounter counter;
      transport->seconds = 0;
      const double rate = measure(model.get(), tokens, &counter);
      if (i == 0) continue;  // warms up
      experts_only.push_back(transport->seconds * 1e3 / counter.steps());
      own.push_back(tokens * 1e3 / rate - experts_only.back());
    }
    return {Median(own), Median(experts_only)};
  }

  std::unique_ptr<LocalModel> experts;  // only its transport is used
  std::unique_ptr<TimedTransport> transport;
  std::unique_ptr<LocalModel> model;
};

// A router of so many micro-batches over another one's expert service.
struct Router {
  static absl::StatusOr<std::unique_ptr<Router>> Load(
      const std::string& directory, LocalModelOptions options,
      RemoteModel* remote, int micro_batches) {
    auto out = std::make_unique<Router>();
    // Of its own: a table tells one dispatcher of changes.
    out->placement =
        std::make_unique<router::PlacementTable>(remote->placement->Get());
    options.transport = remote->endpoints->transport();
    options.placement = out->placement.get();
    options.micro_batches = micro_batches;
    ASSIGN_OR_RETURN(out->model, LocalModel::Load(directory, options));
    return out;
  }
  std::unique_ptr<router::PlacementTable> placement;
  std::unique_ptr<LocalModel> model;
};

// `models`: of one micro-batch, of two, and by time.
void Compare(const char* name, const Measure& measure, int64_t tokens,
             int rounds, TimedModel* timed,
             absl::Span<LocalModel* const> models) {
  const auto whole = timed->OfStep(measure, tokens);
  const auto half = timed->OfStep(measure, std::max<int64_t>(1, tokens / 2));
  // Warms up, and teaches the one that goes by time.
  for (int i = 0; i < 12; ++i) {
    for (LocalModel* model : models) measure(model, tokens, nullptr);
  }
  StepCounter counter;
  std::vector<double> rates[3], two_over_one, auto_over_one, auto_over_two,
      bounds;
  for (int round = 0; round < rounds; ++round) {
    double rate[3];
    for (int i = 0; i < 3; ++i) {
      const int which = (round + i) % 3;  // nobody is always the first
      rate[which] =
          measure(models[which], tokens, which == 2 ? &counter : nullptr);
      rates[which].push_back(rate[which]);
    }
    two_over_one.push_back(rate[1] / rate[0]);
    auto_over_one.push_back(rate[2] / rate[0]);
    auto_over_two.push_back(rate[2] / rate[1]);
    const double step_ms = tokens * 1e3 / rate[0];
    bounds.push_back(step_ms / (2 * std::max(half.own, half.experts)));
  }
  std::printf(
      "%-12s %6.2f+%-6.2f %6.2f+%-6.2f %10.1f %10.1f %10.1f %6.2f %6.2f %8.2f "
      "%8.2f %6.0f%%\n",
      name, whole.own, whole.experts, half.own, half.experts, Median(rates[0]),
      Median(rates[1]), Median(rates[2]), Median(bounds), Median(two_over_one),
      Median(auto_over_one), Median(auto_over_two),
      100 * counter.share_in_two());
  std::fflush(stdout);
}

absl::Status Run(const std::string& directory, int rounds) {
  LocalModelOptions options = BenchOptions(kMaxSeqs);
  options.num_threads = 1;
  PinProcess(kExpertCpu);
  ASSIGN_OR_RETURN(const auto remote, RemoteModel::Load(directory, options, 1));
  PinProcess(kRouterCpu);
  ASSIGN_OR_RETURN(const auto timed, TimedModel::Load(directory, options));
  ASSIGN_OR_RETURN(const auto two,
                   Router::Load(directory, options, remote.get(), 2));
  ASSIGN_OR_RETURN(const auto by_time,
                   Router::Load(directory, options, remote.get(), 0));
  LocalModel* models[] = {remote->model.get(), two->model.get(),
                          by_time->model.get()};
  std::printf(
      "             ms of a step, own+experts                tokens/s\n"
      "                 whole         half            one        two       "
      "auto "
      " bound  2 / 1 auto / 1 auto / 2 in two\n");
  for (const int64_t seqs : {1, 8, 16, 32, 64}) {
    Compare(absl::StrCat("decode x", seqs).c_str(), Decode, seqs, rounds,
            timed.get(), models);
  }
  Compare("prefill 512", Prefill, 512, rounds, timed.get(), models);
  return absl::OkStatus();
}

}  // namespace
}  // namespace expertmesh::testing

int main(int argc, char** argv) {
  const absl::Status status = expertmesh::testing::Run(
      argc > 1 ? argv[1] : EXPERTMESH_SOURCE_DIR "/deploy/demo_model",
      argc > 2 ? std::atoi(argv[2]) : 15);
  if (status.ok()) return 0;
  std::fprintf(stderr, "micro_batch_bench: %s\n", status.ToString().c_str());
  return 1;
}
