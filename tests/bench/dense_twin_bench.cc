// A model of experts against a dense one of the same active size: the same
// kernels in one process, and the former with its experts in a service of their
// own as well.
//   dense_twin_bench CHECKPOINT DENSE_CHECKPOINT [ROUNDS] [bf16|int8|int4]

#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/bench/model_steps.h"
#include "tests/support/remote_model.h"

namespace expertmesh::testing {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "dense_twin_bench: %s\n", status.ToString().c_str());
  return 1;
}

int Main(const std::string& experts, const std::string& dense, int rounds,
         const std::string& format) {
  const absl::StatusOr<WeightFormat> parsed = ParseWeightFormat(format);
  if (!parsed.ok()) return Fail(parsed.status());
  const LocalModelOptions options = BenchOptions(32, *parsed);
  const auto twin = LocalModel::Load(dense, options);
  if (!twin.ok()) return Fail(twin.status());
  const auto local = LocalModel::Load(experts, options);
  if (!local.ok()) return Fail(local.status());
  const auto remote = RemoteModel::Load(experts, options, 1);
  if (!remote.ok()) return Fail(remote.status());
  CompareSpeeds({{"dense", twin->get()},
                 {"experts", local->get()},
                 {"as a service", (*remote)->model.get()}},
                rounds);
  return 0;
}

}  // namespace
}  // namespace expertmesh::testing

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr,
                 "usage: dense_twin_bench CHECKPOINT DENSE_CHECKPOINT "
                 "[ROUNDS] [bf16|int8|int4]\n");
    return 2;
  }
  return expertmesh::testing::Main(argv[1], argv[2],
                                   argc > 3 ? std::atoi(argv[3]) : 9,
                                   argc > 4 ? argv[4] : "bf16");
}
