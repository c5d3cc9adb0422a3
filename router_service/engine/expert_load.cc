#include "router_service/engine/expert_load.h"

#include <algorithm>
#include <numeric>

namespace expertmesh::router {

ExpertLoad::ExpertLoad(int64_t num_layers, int64_t num_experts)
    : num_slots_(num_layers * num_experts),
      buckets_(kWindowSeconds, std::vector<uint32_t>(num_slots_, 0)),
      bucket_second_(kWindowSeconds, -1) {}

bool ExpertLoad::Add(const std::vector<uint32_t>& rows, absl::Duration now) {
  const int64_t second = Second(now);
  MutexLock lock(&mutex_);
  if (first_second_ < 0) first_second_ = second;
  const int64_t index = second % kWindowSeconds;
  const bool is_new = bucket_second_[index] != second;
  if (is_new) {
    std::fill(buckets_[index].begin(), buckets_[index].end(), 0);
    bucket_second_[index] = second;
  }
  for (int64_t slot = 0; slot < num_slots_; ++slot) {
    buckets_[index][slot] += rows[slot];
  }
  return is_new;
}

std::vector<uint64_t> ExpertLoad::Window(absl::Duration now) const {
  const int64_t second = Second(now);
  std::vector<uint64_t> total(num_slots_, 0);
  MutexLock lock(&mutex_);
  for (int64_t i = 0; i < kWindowSeconds; ++i) {
    if (bucket_second_[i] < 0 || bucket_second_[i] + kWindowSeconds <= second) {
      continue;
    }
    for (int64_t slot = 0; slot < num_slots_; ++slot) {
      total[slot] += buckets_[i][slot];
    }
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
