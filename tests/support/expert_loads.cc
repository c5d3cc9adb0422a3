#include "tests/support/expert_loads.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <numeric>
#include <random>

namespace expertmesh {
namespace {

constexpr double kRowsPerLayer = 1 << 15;
constexpr int64_t kSlotBytes = 1000;

std::vector<double> Layer(LoadKind kind, int64_t num_experts,
                          std::mt19937_64& generator) {
  std::vector<double> rows(num_experts);
  const int64_t num_hot = std::max<int64_t>(num_experts / 8, 1);
  std::normal_distribution<double> normal;
  for (int64_t e = 0; e < num_experts; ++e) {
    switch (kind) {
      case LoadKind::kUniform:
        rows[e] = 1;
        break;
      case LoadKind::kZipf:
        rows[e] = 1.0 / static_cast<double>(e + 1);
        break;
      case LoadKind::kHot:
        rows[e] = e < num_hot
                      ? 0.9 / static_cast<double>(num_hot)
                      : 0.1 / static_cast<double>(num_experts - num_hot);
        break;
      case LoadKind::kLogNormal:
        rows[e] = std::exp(normal(generator));
        break;
    }
  }
  std::shuffle(rows.begin(), rows.end(), generator);
  const double sum = std::accumulate(rows.begin(), rows.end(), 0.0);
  for (double& value : rows) value *= kRowsPerLayer / sum;
  return rows;
}

}  // namespace

std::string LoadKindName(LoadKind kind) {
  switch (kind) {
    case LoadKind::kUniform:
      return "uniform";
    case LoadKind::kZipf:
      return "Zipf 1";
    case LoadKind::kHot:
      return "k-hot";
    case LoadKind::kLogNormal:
      return "log-normal";
  }
  return "";
}

std::vector<double> SyntheticLoad(LoadKind kind, int64_t num_layers,
                                  int64_t num_experts, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<double> rows;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const std::vector<double> one = Layer(kind, num_experts, generator);
    rows.insert(rows.end(), one.begin(), one.end());
  }
  return rows;
}

std::vector<double> RecordedLoad(const std::string& text) {
  std::ifstream file(EXPERTMESH_SOURCE_DIR "/tests/golden/loads/" + text +
                     ".txt");
  return {std::istream_iterator<double>(file), std::istream_iterator<double>()};
}

router::PlacementProblem EqualHosts(std::vector<double> rows,
                                    int64_t num_layers, int num_hosts,
                                    int64_t slots_per_layer) {
  router::PlacementProblem problem;
  problem.num_layers = num_layers;
  problem.num_experts = static_cast<int64_t>(rows.size()) / num_layers;
  problem.rows = std::move(rows);
  problem.slot_bytes.assign(num_layers, kSlotBytes);
  for (int h = 0; h < num_hosts; ++h) {
    router::PlacementHost host;
    host.id = "host-" + std::to_string(h);
    host.managed = true;
    host.budget_bytes = slots_per_layer * num_layers / num_hosts * kSlotBytes;
    problem.hosts.push_back(host);
  }
  return problem;
}

router::HostedSlots ContiguousPlacement(const router::PlacementProblem& problem,
                                        int64_t slots_per_layer) {
  const int64_t num_hosts = static_cast<int64_t>(problem.hosts.size());
  router::HostedSlots hosted(num_hosts);
  for (int64_t layer = 0; layer < problem.num_layers; ++layer) {
    for (int64_t p = 0; p < slots_per_layer; ++p) {
      hosted[p * num_hosts / slots_per_layer].push_back(
          {static_cast<int32_t>(layer),
           static_cast<int32_t>(p % problem.num_experts)});
    }
  }
  for (auto& slots : hosted) std::sort(slots.begin(), slots.end());
  return hosted;
}

}  // namespace expertmesh
