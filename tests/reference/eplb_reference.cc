#include "tests/reference/eplb_reference.h"

#include <algorithm>
#include <numeric>

namespace expertmesh::reference {
namespace {

// [num_packs] indices of weights: heaviest first, each to the lightest pack
// that has not got its share of the items.
std::vector<std::vector<int>> BalancedPacking(
    const std::vector<double>& weights, int num_packs) {
  const size_t per_pack = weights.size() / num_packs;
  std::vector<int> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return weights[a] > weights[b]; });
  std::vector<std::vector<int>> packs(num_packs);
  std::vector<double> sums(num_packs);
  for (const int item : order) {
    int lightest = -1;
    for (int p = 0; p < num_packs; ++p) {
      if (packs[p].size() >= per_pack) continue;
      if (lightest < 0 || sums[p] < sums[lightest]) lightest = p;
    }
    packs[lightest].push_back(item);
    sums[lightest] += weights[item];
  }
  return packs;
}

// [num_physical] logical index of each replica: all once, then one after the
// other of the one with the highest weight per replica.
std::vector<int> Replicate(const std::vector<double>& weights,
                           int num_physical) {
  std::vector<int> replicas(weights.size());
  std::iota(replicas.begin(), replicas.end(), 0);
  std::vector<int> count(weights.size(), 1);
  while (static_cast<int>(replicas.size()) < num_physical) {
    int heaviest = 0;
    for (size_t i = 1; i < weights.size(); ++i) {
      if (weights[i] / count[i] > weights[heaviest] / count[heaviest]) {
        heaviest = static_cast<int>(i);
      }
    }
    replicas.push_back(heaviest);
    ++count[heaviest];
  }
  return replicas;
}

}  // namespace

std::vector<std::vector<int>> EplbPlacement(const std::vector<double>& rows,
                                            const EplbShape& shape) {
  const bool is_hierarchical = shape.num_groups % shape.num_nodes == 0;
  const int num_groups = is_hierarchical ? shape.num_groups : 1;
  const int num_nodes = is_hierarchical ? shape.num_nodes : 1;
  const int group_size = static_cast<int>(rows.size()) / num_groups;
  std::vector<double> group_rows(num_groups);
  for (size_t e = 0; e < rows.size(); ++e)
    group_rows[e / group_size] += rows[e];

  std::vector<std::vector<int>> hosts;
  for (const std::vector<int>& groups :
       BalancedPacking(group_rows, num_nodes)) {
    std::vector<int> experts;  // of this node
    for (const int group : groups) {
      for (int i = 0; i < group_size; ++i) {
        experts.push_back(group * group_size + i);
      }
    }
    std::vector<double> node_rows;
    for (const int expert : experts) node_rows.push_back(rows[expert]);
    const std::vector<int> replicas =
        Replicate(node_rows, shape.num_physical / num_nodes);
    std::vector<int> count(experts.size());
    for (const int logical : replicas) ++count[logical];
    std::vector<double> replica_rows;
    for (const int logical : replicas) {
      replica_rows.push_back(node_rows[logical] / count[logical]);
    }
    for (const std::vector<int>& pack :
         BalancedPacking(replica_rows, shape.num_hosts / num_nodes)) {
      hosts.emplace_back();
      for (const int item : pack) {
        hosts.back().push_back(experts[replicas[item]]);
      }
    }
  }
  return hosts;
}

std::vector<double> EplbHostRows(const std::vector<double>& rows,
                                 const std::vector<std::vector<int>>& hosts) {
  std::vector<int> count(rows.size());
  for (const std::vector<int>& experts : hosts) {
    for (const int expert : experts) ++count[expert];
  }
  std::vector<double> result;
  for (const std::vector<int>& experts : hosts) {
    double sum = 0;
    for (const int expert : experts) sum += rows[expert] / count[expert];
    result.push_back(sum);
  }
  return result;
}

}  // namespace expertmesh::reference
