#include "router_service/engine/expert_load.h"

#include <algorithm>
#include <numeric>

namespace expertmesh::router {

ExpertLoad::ExpertLoad(int64_t num_layers, int64_t num_experts,
                       bool counts_totals)
    : num_slots_(num_layers * num_experts),
      buckets_(kWindowSeconds),
      totals_(counts_totals ? num_slots_ : 0) {
  for (Bucket& bucket : buckets_) bucket.rows.resize(num_slots_);
}

ExpertLoad::Bucket& ExpertLoad::BucketOf(int64_t second) {
  Bucket& bucket = buckets_[second % kWindowSeconds];
  if (bucket.second != second) {
    std::fill(bucket.rows.begin(), bucket.rows.end(), 0);
    bucket.tokens = 0;
    bucket.second = second;
  }
  return bucket;
}

void ExpertLoad::Add(const std::vector<uint32_t>& rows, absl::Duration now) {
  const int64_t second = Second(now);
  MutexLock lock(&mutex_);
  if (first_second_ < 0) first_second_ = second;
  Bucket& bucket = BucketOf(second);
  for (int64_t slot = 0; slot < num_slots_; ++slot) {
    bucket.rows[slot] += rows[slot];
  }
  for (size_t slot = 0; slot < totals_.size(); ++slot) {
    totals_[slot] += rows[slot];
  }
}

std::vector<uint64_t> ExpertLoad::Totals() const {
  MutexLock lock(&mutex_);
  return totals_;
}

void ExpertLoad::AddTokens(int64_t count, absl::Duration now) {
  MutexLock lock(&mutex_);
  BucketOf(Second(now)).tokens += count;
}

std::vector<uint64_t> ExpertLoad::Window(absl::Duration now) const {
  std::vector<uint64_t> total;
  Window(now, &total);
  return total;
}

void ExpertLoad::Window(absl::Duration now,
                        std::vector<uint64_t>* total) const {
  total->assign(num_slots_, 0);
  MutexLock lock(&mutex_);
  for (const Bucket& bucket : buckets_) {
    if (!IsWithin(bucket, Second(now))) continue;
    for (int64_t slot = 0; slot < num_slots_; ++slot) {
      (*total)[slot] += bucket.rows[slot];
    }
  }
}

int64_t ExpertLoad::WindowTokens(absl::Duration now) const {
  int64_t total = 0;
  MutexLock lock(&mutex_);
  for (const Bucket& bucket : buckets_) {
    if (IsWithin(bucket, Second(now))) total += bucket.tokens;
  }
  return total;
}

absl::Duration ExpertLoad::Covered(absl::Duration now) const {
  MutexLock lock(&mutex_);
  if (first_second_ < 0) return absl::ZeroDuration();
  return absl::Seconds(
      std::min<int64_t>(kWindowSeconds, Second(now) - first_second_ + 1));
}

double Balancedness(const uint64_t* rows, int64_t num_experts) {
  const uint64_t most = *std::max_element(rows, rows + num_experts);
  if (most == 0) return 1.0;
  const uint64_t sum = std::accumulate(rows, rows + num_experts, uint64_t{0});
  return static_cast<double>(sum) / static_cast<double>(num_experts) /
         static_cast<double>(most);
}

}  // namespace expertmesh::router
