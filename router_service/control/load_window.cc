#include "router_service/control/load_window.h"

#include <algorithm>

namespace expertmesh::router {
namespace {

// Moves a counter on; returns by how much. One that went down is that of a
// restarted service.
uint64_t Advance(uint64_t now, uint64_t* counter) {
  const uint64_t more = now >= *counter ? now - *counter : now;
  *counter = now;
  return more;
}

void Add(const HostWork& more, HostWork* sum) {
  sum->rows += more.rows;
  sum->runs += more.runs;
  sum->busy += more.busy;
}

}  // namespace

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
      endpoint.done[number % options_.num_buckets] = {};
    }
  }
  newest_bucket_ = std::max(newest_bucket_, now);
}

void LoadWindow::Observe(absl::string_view name,
                         absl::Span<const SlotCounter> counters,
                         const WorkCounters& work) {
  MutexLock lock(&mutex_);
  Slide();
  const auto [it, is_new] = endpoints_.try_emplace(std::string(name));
  Endpoint& endpoint = it->second;
  if (is_new) {
    endpoint.counters.resize(total_.size());
    endpoint.done.resize(options_.num_buckets);
    first_report_ = std::min(first_report_, clock_->Now());
  }
  const size_t position = newest_bucket_ % options_.num_buckets;
  HostWork done;
  done.busy = absl::Microseconds(
      static_cast<int64_t>(Advance(work.busy_us, &endpoint.work.busy_us)));
  done.runs = Advance(work.runs, &endpoint.work.runs);
  for (const SlotCounter& counter : counters) {
    const SlotId slot = counter.slot;
    if (slot.layer < 0 || slot.layer >= options_.num_layers ||
        slot.expert < 0 || slot.expert >= options_.num_experts) {
      continue;
    }
    const int64_t index = slot.layer * options_.num_experts + slot.expert;
    const uint64_t rows = Advance(counter.rows, &endpoint.counters[index]);
    if (is_new) continue;
    buckets_[position][index] += rows;
    total_[index] += rows;
    done.rows += rows;
  }
  if (!is_new) Add(done, &endpoint.done[position]);
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

LoadWindow::Work LoadWindow::EndpointWork() const {
  MutexLock lock(&mutex_);
  Slide();
  Work work;
  for (const auto& [name, endpoint] : endpoints_) {
    HostWork& sum = work[name];
    for (const HostWork& done : endpoint.done) Add(done, &sum);
  }
  return work;
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
