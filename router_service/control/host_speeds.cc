#include "router_service/control/host_speeds.h"

#include <algorithm>
#include <utility>

namespace expertmesh::router {
namespace {

// Of an even number the upper one: in between there may be no host, and none
// would be as fast as it.
double Median(std::vector<double> values) {
  const auto middle =
      values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// What both agree on.
double NearerToOne(double a, double b) {
  if (a > 1 && b > 1) return std::min(a, b);
  if (a < 1 && b < 1) return std::max(a, b);
  return 1;
}

bool SaysEnough(const HostWork& work) {
  return work.busy >= HostSpeeds::kLeastBusy && work.rows > 0 && work.runs > 0;
}

double PerSecond(uint64_t count, const HostWork& work) {
  return static_cast<double>(count) / absl::ToDoubleSeconds(work.busy);
}

}  // namespace

void HostSpeeds::Update(const LoadWindow::Work& work) {
  std::erase_if(speeds_, [&](const auto& speed) {
    return work.find(speed.first) == work.end();
  });
  std::vector<double> rows, runs;
  for (const auto& [host, done] : work) {
    if (!SaysEnough(done)) continue;
    rows.push_back(PerSecond(done.rows, done));
    runs.push_back(PerSecond(done.runs, done));
  }
  if (rows.empty()) return;
  const double median_rows = Median(std::move(rows));
  const double median_runs = Median(std::move(runs));
  for (const auto& [host, done] : work) {
    if (!SaysEnough(done)) continue;
    const double measured =
        std::clamp(NearerToOne(PerSecond(done.rows, done) / median_rows,
                               PerSecond(done.runs, done) / median_runs),
                   1 / kMost, kMost);
    double& speed = speeds_.try_emplace(host, 1).first->second;
    if (measured > speed * kSteady || measured < speed / kSteady) {
      speed = measured;
    }
  }
}

void HostSpeeds::Fill(std::vector<PlacementHost>* hosts) const {
  std::map<std::string, std::vector<double>> of_pool;
  for (const PlacementHost& host : *hosts) {
    const auto found = speeds_.find(host.id);
    if (found != speeds_.end()) of_pool[host.pool].push_back(found->second);
  }
  for (PlacementHost& host : *hosts) {
    const auto found = speeds_.find(host.id);
    if (found != speeds_.end()) {
      host.speed = found->second;
    } else if (const auto pool = of_pool.find(host.pool);
               pool != of_pool.end()) {
      host.speed = Median(pool->second);
    } else {
      host.speed = 1;
    }
  }
}

}  // namespace expertmesh::router
