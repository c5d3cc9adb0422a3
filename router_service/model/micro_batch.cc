#include "router_service/model/micro_batch.h"

#include <algorithm>
#include <bit>

namespace expertmesh::router {
namespace {

// Steps of one magnitude after which the other number is tried again.
constexpr int64_t kTryAgain = 64;
// Two must win by this much, or noise would decide.
constexpr double kWin = 0.97;
constexpr double kNewest = 0.2;  // weight of the newest step

template <typename T>
void AssignSlice(const std::vector<T>& whole, int64_t first, int64_t last,
                 std::vector<T>* part) {
  part->assign(whole.begin() + first, whole.begin() + last);
}

}  // namespace

void SliceBatch(const TokenBatch& whole, int64_t first, int64_t last,
                TokenBatch* part) {
  part->Clear();
  AssignSlice(whole.token_ids, first, last, &part->token_ids);
  AssignSlice(whole.positions, first, last, &part->positions);
  AssignSlice(whole.slot_mapping, first, last, &part->slot_mapping);
  AssignSlice(whole.policy, first, last, &part->policy);
  part->max_blocks = whole.max_blocks;
  for (int64_t seq = 0; seq < whole.num_seqs(); ++seq) {
    const int64_t begin = std::max<int64_t>(first, whole.seq_starts[seq]);
    const int64_t end = std::min<int64_t>(last, whole.seq_starts[seq + 1]);
    if (begin >= end) continue;
    part->seq_starts.push_back(static_cast<int32_t>(end - first));
    const auto table = whole.block_tables.begin() + seq * whole.max_blocks;
    part->block_tables.insert(part->block_tables.end(), table,
                              table + whole.max_blocks);
  }
}

size_t MicroBatchPolicy::MagnitudeOf(int64_t num_tokens) {
  return std::min<size_t>(std::bit_width(static_cast<uint64_t>(num_tokens)),
                          19);
}

int MicroBatchPolicy::Choose(int64_t num_tokens) {
  if (num_tokens < 2) return 1;
  if (fixed_ != 0) return fixed_;
  Magnitude& magnitude = magnitudes_[MagnitudeOf(num_tokens)];
  const int64_t step = magnitude.steps++;
  const auto [one, two] = magnitude.seconds;
  // The first step warms up whatever is cold.
  if (step == 0 || one == 0) return 1;
  if (two == 0) return 2;
  const int best = two < kWin * one ? 2 : 1;
  return step % kTryAgain == 0 ? 3 - best : best;
}

void MicroBatchPolicy::Observe(int64_t num_tokens, int count,
                               absl::Duration taken) {
  Magnitude& magnitude = magnitudes_[MagnitudeOf(num_tokens)];
  if (magnitude.steps <= 1) return;
  double& seconds = magnitude.seconds[count - 1];
  const double now =
      absl::ToDoubleSeconds(taken) / static_cast<double>(num_tokens);
  seconds = seconds == 0 ? now : (1 - kNewest) * seconds + kNewest * now;
}

}  // namespace expertmesh::router
