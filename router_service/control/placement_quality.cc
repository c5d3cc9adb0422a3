#include "router_service/control/placement_quality.h"

#include <algorithm>

namespace expertmesh::router {
namespace {

// How a slot's rows are split over its replicas.
class RowSplit {
 public:
  explicit RowSplit(const PlacementProblem& problem)
      : problem_(problem), rates_(problem.num_slots()) {
    for (const PlacementHost& host : problem.hosts) mean_rate_ += host.rate();
    mean_rate_ /= static_cast<double>(problem.hosts.size());
  }

  void CountReplica(int64_t slot, int host) {
    rates_[slot] += problem_.hosts[host].rate();
  }
  // Rows that `host` gets of the slot.
  double Rows(int64_t slot, int host) const {
    return problem_.rows[slot] * problem_.hosts[host].rate() / rates_[slot];
  }
  double Busy(double rows, int host) const {
    return rows * mean_rate_ / problem_.hosts[host].rate();
  }

 private:
  const PlacementProblem& problem_;
  std::vector<double> rates_;  // [num_slots] summed over the slot's holders
  double mean_rate_ = 0;
};

double Ratio(double mean, double max) { return max > 0 ? mean / max : 1; }

}  // namespace

PlacementQuality EvaluatePlacement(const PlacementProblem& problem,
                                   const HostedSlots& hosted) {
  RowSplit split(problem);
  for (size_t h = 0; h < hosted.size(); ++h) {
    for (const SlotId slot : hosted[h]) {
      split.CountReplica(problem.IndexOf(slot), static_cast<int>(h));
    }
  }
  const int64_t num_layers = problem.num_layers;
  std::vector<double> max_busy(num_layers);
  std::vector<double> max_replica(num_layers);
  std::vector<double> total(num_layers);
  std::vector<int64_t> replicas(num_layers);
  std::vector<double> host_rows(num_layers);
  for (size_t h = 0; h < hosted.size(); ++h) {
    std::fill(host_rows.begin(), host_rows.end(), 0.0);
    for (const SlotId slot : hosted[h]) {
      const double rows =
          split.Rows(problem.IndexOf(slot), static_cast<int>(h));
      host_rows[slot.layer] += rows;
      total[slot.layer] += rows;
      ++replicas[slot.layer];
      max_replica[slot.layer] = std::max(max_replica[slot.layer], rows);
    }
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      max_busy[layer] = std::max(
          max_busy[layer], split.Busy(host_rows[layer], static_cast<int>(h)));
    }
  }
  PlacementQuality quality;
  double slowest = 0;
  double mean = 0;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const double host_mean =
        total[layer] / static_cast<double>(problem.hosts.size());
    const double replica_mean =
        total[layer] /
        static_cast<double>(std::max<int64_t>(replicas[layer], 1));
    quality.host_balancedness.push_back(Ratio(host_mean, max_busy[layer]));
    quality.replica_balancedness.push_back(
        Ratio(replica_mean, max_replica[layer]));
    slowest += max_busy[layer];
    mean += host_mean;
  }
  if (mean > 0) quality.slowest_over_mean = slowest / mean;
  return quality;
}

}  // namespace expertmesh::router
