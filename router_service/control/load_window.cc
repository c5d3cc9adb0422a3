#include "router_service/control/load_window.h"

#include <algorithm>
#include <numeric>

namespace expertmesh::router {

LoadWindow::LoadWindow(const LoadWindowOptions& options, const Clock* clock)
    : options_(options),
      bucket_(options.window / options.num_buckets),
      clock_(clock),
      buckets_(options.num_buckets,
               std::vector<uint64_t>(options.num_layers * options.num_experts)),
      total_(options.num_layers * options.num_experts),
      newest_bucket_(BucketNumber()) {}

int64_t LoadWindow::BucketNumber() const {
  absl::Duration rest;
  return absl::IDivDuration(clock_->Now(), bucket_, &rest);
}

void LoadWindow::Slide() const {
  const int64_t now = BucketNumber();
  // A long silence empties every bucket once.
  const int64_t first =
      std::max(newest_bucket_ + 1, now - options_.num_buckets + 1);
  for (int64_t number = first; number <= now; ++number) {
    std::vector<uint64_t>& bucket = buckets_[number % options_.num_buckets];
    for (size_t slot = 0; slot < bucket.size(); ++slot) {
      total_[slot] -= bucket[slot];
      bucket[slot] = 0;
    }
    for (auto& [name, endpoint] : endpoints_) {
      endpoint.rows[number % options_.num_buckets] = 0;
    }
  }
  newest_bucket_ = std::max(newest_bucket_, now);
}

void LoadWindow::Observe(absl::string_view name,
                         absl::Span<const SlotCounter> counters) {
  MutexLock lock(&mutex_);
  Slide();
  const auto [it, is_new] = endpoints_.try_emplace(std::string(name));
  Endpoint& endpoint = it->second;
  if (is_new) {
    endpoint.counters.resize(total_.size());
    endpoint.rows.resize(options_.num_buckets);
    first_report_ = std::min(first_report_, clock_->Now());
  }
  const size_t position = newest_bucket_ % options_.num_buckets;
  for (const SlotCounter& counter : counters) {
    const SlotId slot = counter.slot;
    if (slot.layer < 0 || slot.layer >= options_.num_layers ||
        slot.expert < 0 || slot.expert >= options_.num_experts) {
      continue;
    }
    const int64_t index = slot.layer * options_.num_experts + slot.expert;
    uint64_t& before = endpoint.counters[index];
    const uint64_t rows =
        counter.rows >= before ? counter.rows - before : counter.rows;
    before = counter.rows;
    if (is_new) continue;
    buckets_[position][index] += rows;
    total_[index] += rows;
    endpoint.rows[position] += rows;
  }
}

void LoadWindow::Forget(absl::string_view endpoint) {
  MutexLock lock(&mutex_);
  const auto it = endpoints_.find(endpoint);
  if (it != endpoints_.end()) endpoints_.erase(it);
}

std::vector<double> LoadWindow::Rows() const {
  MutexLock lock(&mutex_);
  Slide();
  return std::vector<double>(total_.begin(), total_.end());
}

std::map<std::string, uint64_t> LoadWindow::EndpointRows() const {
  MutexLock lock(&mutex_);
  Slide();
  std::map<std::string, uint64_t> rows;
  for (const auto& [name, endpoint] : endpoints_) {
    rows[name] = std::accumulate(endpoint.rows.begin(), endpoint.rows.end(),
                                 uint64_t{0});
  }
  return rows;
}

absl::Duration LoadWindow::Covered() const {
  MutexLock lock(&mutex_);
  const absl::Duration now = clock_->Now();
  if (first_report_ >= now) return absl::ZeroDuration();
  // The newest bucket is not over yet.
  const absl::Duration into_bucket = now - bucket_ * BucketNumber();
  return std::min(now - first_report_, options_.window - bucket_ + into_bucket);
}

}  // namespace expertmesh::router
