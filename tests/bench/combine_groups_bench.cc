// What answers with sums instead of rows are worth: tokens per second with one
// combine group over those with each expert by itself, both with the same
// expert service, which holds all experts.
//   combine_groups_bench [CHECKPOINT] [ROUNDS]
// Rounds alternate between the two; figures are medians over rounds, ratios are
// made within a round.

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "tests/bench/measure.h"
#include "tests/bench/model_steps.h"
#include "tests/support/remote_model.h"

namespace expertmesh::testing {
namespace {

using Measure = std::function<double(LocalModel*)>;

void Compare(const char* name, int rounds, LocalModel* rows, LocalModel* sums,
             const Measure& measure) {
  std::vector<double> with_rows, with_sums, ratios;
  measure(rows);
  measure(sums);
  for (int round = 0; round < rounds; ++round) {
    with_rows.push_back(measure(rows));
    with_sums.push_back(measure(sums));
    ratios.push_back(with_sums.back() / with_rows.back());
  }
  std::printf("  %-12s %10.1f %10.1f %8.3f\n", name, Median(with_rows),
              Median(with_sums), Median(ratios));
  std::fflush(stdout);
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "combine_groups_bench: %s\n", status.ToString().c_str());
  return 1;
}

int Main(const std::string& directory, int rounds) {
  constexpr int64_t kMaxSequences = 32;
  for (const bool shared_memory : {true, false}) {
    LocalModelOptions options = BenchOptions(kMaxSequences);
    const auto rows = RemoteModel::Load(directory, options, 1, shared_memory);
    if (!rows.ok()) return Fail(rows.status());
    options.transport = (*rows)->endpoints->transport();
    options.placement = (*rows)->placement.get();
    options.combine_group_size = (*rows)->model->config().num_experts;
    const auto sums = LocalModel::Load(directory, options);
    if (!sums.ok()) return Fail(sums.status());
    std::printf("%s, tokens/s:  rows       sums    ratio\n",
                shared_memory ? "shared memory" : "gRPC");
    const auto compare = [&](const char* name, const Measure& measure) {
      Compare(name, rounds, (*rows)->model.get(), sums->get(), measure);
    };
    compare("decode x1",
            [](LocalModel* m) { return DecodeTokensPerSecond(m, 1, 8); });
    compare("decode x32",
            [](LocalModel* m) { return DecodeTokensPerSecond(m, 32, 2); });
    compare("prefill 512",
            [](LocalModel* m) { return PrefillTokensPerSecond(m, 1, 512); });
  }
  return 0;
}

}  // namespace
}  // namespace expertmesh::testing

int main(int argc, char** argv) {
  return expertmesh::testing::Main(
      argc > 1 ? argv[1] : EXPERTMESH_SOURCE_DIR "/deploy/demo_model",
      argc > 2 ? std::atoi(argv[2]) : 9);
}
