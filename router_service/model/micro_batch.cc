#include "router_service/model/micro_batch.h"

#include <algorithm>
#include <bit>

namespace expertmesh::router {
namespace {

// Steps of one magnitude from one trial of the other number to the next.
constexpr int64_t kTryAgain = 128;
// Two must win by this much, or noise would decide.
constexpr double kWin = 0.97;

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
  if (!whole.may_mix.empty()) {
    AssignSlice(whole.may_mix, first, last, &part->may_mix);
  }
  for (const TracedTokens& traced : whole.traced) {
    const int64_t begin = std::max(first, traced.first);
    const int64_t end = std::min(last, traced.last);
    if (begin >= end) continue;
    part->traced.push_back({begin - first, end - first, traced.traceparent});
  }
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

double MicroBatchPolicy::Recent::Median() const {
  std::array<double, kTrial> sorted = latest;
  std::nth_element(sorted.begin(), sorted.begin() + kTrial / 2, sorted.end());
  return sorted[kTrial / 2];
}

int MicroBatchPolicy::Choose(int64_t num_tokens) {
  if (num_tokens < 2) return 1;
  if (fixed_ != 0) return fixed_;
  Magnitude& magnitude = magnitudes_[MagnitudeOf(num_tokens)];
  const int64_t step = magnitude.steps++;
  if (step < 2 * kTrial) return step < kTrial ? 1 : 2;
  const auto& [one, two] = magnitude.by_count;
  const int best = two.Median() < kWin * one.Median() ? 2 : 1;
  return step % kTryAgain < kTryAgain - kTrial ? best : 3 - best;
}

void MicroBatchPolicy::Observe(int64_t num_tokens, int count,
                               absl::Duration taken) {
  magnitudes_[MagnitudeOf(num_tokens)].by_count[count - 1].Add(
      absl::ToDoubleSeconds(taken) / static_cast<double>(num_tokens));
}

}  // namespace expertmesh::router
