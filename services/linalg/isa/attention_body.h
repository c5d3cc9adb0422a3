#pragma once

// Paged attention over the lanes of a simd_*.h that the including file has
// chosen. The arithmetic of a row:
//   for blocks of 64 absolute positions, ascending, that its window meets:
//     s_j = chain of fused multiply-adds q_d k_jd over d ascending; of codes,
//           times the key's scale
//     m'  = max(m, max s_j);  p_j = e^(s_j - m');  a = e^(m - m')
//     l   = l a + sum of p_j (16 partial sums, fixed tree)
//     o   = o a, then the chain o + p_j v_j over its own j ascending; with
//           codes v_j, p_j is first multiplied by the value's scale
//   out = o (1 / l)
// Nothing in it depends on the other rows, which only share loads. Keys that a
// row does not see are left out, not multiplied by zero: their pages may hold
// anything.

#include "services/linalg/isa/attention_tiles.h"

namespace expertmesh {
namespace {

// Rows whose blocks pass together, so that a block is read from far away once
// for all of them.
constexpr int64_t kRowsTogether = 128;

// Keys and values of 64 absolute positions.
template <typename T>
struct Block {
  int64_t start;
  Page<T> keys[kBlockPages];
  Page<T> values[kBlockPages];
};

// The block that begins at `start`. Pages that no row sees may not exist: a
// neighbour's scores stand in for theirs and are masked.
template <typename T>
Block<T> BlockAt(const AttendArgs& args, int64_t start, KeyRange seen) {
  Block<T> block;
  block.start = start;
  for (int c = 0; c < kBlockPages; ++c) {
    const int64_t page = MinOf(MaxOf(start / kPage + c, seen.first / kPage),
                               (seen.last - 1) / kPage);
    block.keys[c] = PageAt<T>(args.key_pages[page]);
    block.values[c] = PageAt<T>(args.value_pages[page]);
  }
  return block;
}

// The part of a row's keys that lies in the block, relative to its start.
EXPERTMESH_INLINE KeyRange InBlock(const AttendRow& row, int64_t block_start) {
  return {MaxOf(row.first - block_start, 0),
          MinOf(row.last - block_start, kBlock)};
}

// The highest score of the keys in range; the others become -infinity.
float MaskScores(float* scores, KeyRange range) {
  const float lowest = -__builtin_inff();
  for (int64_t j = 0; j < range.first; ++j) scores[j] = lowest;
  for (int64_t j = range.last; j < kBlock; ++j) scores[j] = lowest;
  return MaxLanes(Max(Max(Load(scores), Load(scores + 16)),
                      Max(Load(scores + 32), Load(scores + 48))));
}

// Turns a row's scores into the weights of the values as they lie in `pages`;
// returns their sum before the values' scales.
template <typename T>
float WeighScores(float* scores, float max, const Page<T>* pages) {
  const F32x16 shift = Broadcast(max);
  F32x16 weights[kBlockPages];
#pragma GCC unroll 4
  for (int c = 0; c < kBlockPages; ++c) {
    weights[c] = Exp(Sub(Load(scores + c * 16), shift));
    const float* scales = pages[c].scales;
    Store(scores + c * 16, scales ? Mul(weights[c], Load(scales)) : weights[c]);
  }
  return SumLanes(
      Add(Add(weights[0], weights[1]), Add(weights[2], weights[3])));
}

void ScaleOut(AttendRow& row, int64_t head_dim, float factor) {
  if (factor == 1.0f) return;
  const F32x16 f = Broadcast(factor);
  Map(
      head_dim, row.out, [&](F32x16 v) { return Mul(v, f); },
      static_cast<const float*>(row.out));
}

// Takes the block's scores into each row's max and sum, and scales what the row
// has summed so far; weights are weights afterwards.
template <typename T, int kRows>
void UpdateSoftmax(AttendRow* const* rows, Weights* weights,
                   const KeyRange* ranges, const Page<T>* pages,
                   int64_t head_dim) {
  static_assert(kRows <= 16);
  float factors[16] = {};
  for (int r = 0; r < kRows; ++r) {
    const float block_max = MaskScores(weights[r], ranges[r]);
    const float max = rows[r]->max > block_max ? rows[r]->max : block_max;
    factors[r] = rows[r]->max - max;
    rows[r]->max = max;
  }
  Store(factors, Exp(Load(factors)));
  for (int r = 0; r < kRows; ++r) {
    AttendRow& row = *rows[r];
    const float sum = WeighScores(weights[r], row.max, pages);
    row.sum = row.sum * factors[r] + sum;
    ScaleOut(row, head_dim, factors[r]);
  }
}

// kRows rows that all see some of the block. `next` may be null.
template <typename T, int kRows>
void AttendTile(AttendRow* const* rows, const Block<T>& block,
                const Block<T>* next, int64_t head_dim) {
  alignas(64) Weights weights[kRows];
  ScoreRows<T, kRows>(rows, weights, block.keys, next ? next->keys : nullptr,
                      head_dim);
  KeyRange ranges[kRows];
  KeyRange common = {0, kBlock};
  for (int r = 0; r < kRows; ++r) {
    ranges[r] = InBlock(*rows[r], block.start);
    common.first = MaxOf(common.first, ranges[r].first);
    common.last = MinOf(common.last, ranges[r].last);
  }
  if (common.first >= common.last) common = {kBlock, kBlock};
  UpdateSoftmax<T, kRows>(rows, weights, ranges, block.values, head_dim);
  // Keys before and after the common ones are each row's own affair.
  for (int r = 0; r < kRows; ++r) {
    AddValues<T, 1>(rows + r, weights + r, block.values, nullptr,
                    {ranges[r].first, MinOf(common.first, ranges[r].last)},
                    head_dim);
  }
  AddValues<T, kRows>(rows, weights, block.values,
                      next ? next->values : nullptr, common, head_dim);
  for (int r = 0; r < kRows; ++r) {
    AddValues<T, 1>(rows + r, weights + r, block.values, nullptr,
                    {common.last, ranges[r].last}, head_dim);
  }
}

// All rows that see some of the block, in tiles of nearly equal height.
template <typename T>
void AttendBlock(AttendRow* const* rows, int64_t num_rows,
                 const Block<T>& block, const Block<T>* next,
                 int64_t head_dim) {
  const int64_t tiles = (num_rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row = num_rows * t / tiles;
    const int count = static_cast<int>(num_rows * (t + 1) / tiles - row);
    WithRowCount(count, [&](auto constant) {
      AttendTile<T, decltype(constant)::value>(
          rows + row, block, t == 0 ? next : nullptr, head_dim);
    });
  }
}

// Rows `begin` to `end` of the arguments, at most kRowsTogether.
template <typename T>
void AttendTogether(const AttendArgs& args, int64_t begin, int64_t end) {
  AttendRow rows[kRowsTogether];
  const int64_t num_rows = end - begin;
  KeyRange seen = {args.positions[begin], 0};
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t position = args.positions[begin + r];
    const int64_t first =
        args.window > 0 ? MaxOf(position + 1 - args.window, 0) : 0;
    rows[r] = {args.queries + (begin + r) * args.head_dim,
               args.out + (begin + r) * args.head_dim,
               first,
               position + 1,
               -__builtin_inff(),
               0.0f};
    __builtin_memset(rows[r].out, 0, args.head_dim * sizeof(float));
    seen = {MinOf(seen.first, first), MaxOf(seen.last, position + 1)};
  }
  for (int64_t start = seen.first / kBlock * kBlock; start < seen.last;
       start += kBlock) {
    AttendRow* active[kRowsTogether];
    int64_t num_active = 0;
    for (int64_t r = 0; r < num_rows; ++r) {
      if (rows[r].first < start + kBlock && start < rows[r].last) {
        active[num_active++] = &rows[r];
      }
    }
    if (num_active == 0) continue;
    const Block<T> block = BlockAt<T>(args, start, seen);
    const bool has_next = start + kBlock < seen.last;
    const Block<T> next =
        BlockAt<T>(args, start + (has_next ? kBlock : 0), seen);
    AttendBlock<T>(active, num_active, block, has_next ? &next : nullptr,
                   args.head_dim);
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    ScaleOut(rows[r], args.head_dim, 1.0f / rows[r].sum);
  }
}

template <typename T>
void Attend(const AttendArgs& args) {
  const int64_t turns = (args.num_rows + kRowsTogether - 1) / kRowsTogether;
  for (int64_t t = 0; t < turns; ++t) {
    AttendTogether<T>(args, args.num_rows * t / turns,
                      args.num_rows * (t + 1) / turns);
  }
}

}  // namespace
}  // namespace expertmesh
