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

namespace expertmesh {
namespace {

constexpr int64_t kPage = 16;
constexpr int kBlockPages = 4;
constexpr int64_t kBlock = kPage * kBlockPages;

// One head's keys or values of 16 positions, and their scales: null unless the
// elements are codes.
template <typename T>
struct Page {
  const T* elements;
  const float* scales;
};

template <typename T>
EXPERTMESH_INLINE Page<T> PageAt(const void* page) {
  return {static_cast<const T*>(page), nullptr};
}
template <>
EXPERTMESH_INLINE Page<int8_t> PageAt(const void* page) {
  const auto* scales = static_cast<const float*>(page);
  return {reinterpret_cast<const int8_t*>(scales + kPage), scales};
}

// One row inside a tile.
struct AttendRow {
  const float* query;
  float* out;
  int64_t first;  // key positions [first, last)
  int64_t last;
  float max;
  float sum;
  alignas(64) float weights[kBlock];  // scores, then their exponentials
};

struct KeyRange {
  int64_t first;
  int64_t last;
};

EXPERTMESH_INLINE int64_t MinOf(int64_t a, int64_t b) { return a < b ? a : b; }
EXPERTMESH_INLINE int64_t MaxOf(int64_t a, int64_t b) { return a > b ? a : b; }

// Scores of kRows rows against kCols pages of 16 keys.
template <typename T, int kRows, int kCols>
void ScoreTile(AttendRow* const* rows, const Page<T>* pages, int64_t head_dim,
               int64_t offset) {
  F32x16 acc[kRows][kCols];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) acc[r][c] = Broadcast(0.0f);
  }
  const float* queries[kRows];
  for (int r = 0; r < kRows; ++r) queries[r] = rows[r]->query;
  for (int64_t d = 0; d < head_dim; ++d) {
    F32x16 keys[kCols];
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c)
      keys[c] = Load(pages[c].elements + d * kPage);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32x16 query = Broadcast(queries[r][d]);
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c) {
        acc[r][c] = Fma(query, keys[c], acc[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      const float* scales = pages[c].scales;
      Store(rows[r]->weights + offset + c * kPage,
            scales ? Mul(acc[r][c], Load(scales)) : acc[r][c]);
    }
  }
}

template <typename T, int kRows>
void ScoreRows(AttendRow* const* rows, const Page<T>* pages, int64_t head_dim) {
  constexpr int kCols = TileCols(kRows);
  for (int c = 0; c < kBlockPages; c += kCols) {
    ScoreTile<T, kRows, kCols>(rows, pages + c, head_dim, c * kPage);
  }
}

// Dimensions [d, d + 16 kCols) of kRows outputs take the keys of `range`, which
// all these rows see. `Access` loads and stores 16 dimensions.
template <typename T, int kRows, int kCols, typename Access>
void ValueTile(AttendRow* const* rows, const Page<T>* pages, KeyRange range,
               int64_t head_dim, int64_t d, Access access) {
  F32x16 acc[kRows][kCols];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      acc[r][c] = access.Get(rows[r]->out + d + c * 16);
    }
  }
  const float* weights[kRows];
  for (int r = 0; r < kRows; ++r) weights[r] = rows[r]->weights;
  for (int64_t j = range.first; j < range.last; ++j) {
    const T* value = pages[j / kPage].elements + (j % kPage) * head_dim + d;
    F32x16 values[kCols];
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) values[c] = access.Get(value + c * 16);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32x16 weight = Broadcast(weights[r][j]);
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c) {
        acc[r][c] = Fma(weight, values[c], acc[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      access.Put(rows[r]->out + d + c * 16, acc[r][c]);
    }
  }
}

struct WholeAccess {
  template <typename T>
  EXPERTMESH_INLINE F32x16 Get(const T* p) const {
    return Load(p);
  }
  EXPERTMESH_INLINE void Put(float* p, F32x16 a) const { Store(p, a); }
};

// The end of a head whose size is no multiple of 16.
struct PartAccess {
  int64_t count;
  template <typename T>
  EXPERTMESH_INLINE F32x16 Get(const T* p) const {
    return LoadFirst(p, count);
  }
  EXPERTMESH_INLINE void Put(float* p, F32x16 a) const {
    StoreFirst(p, count, a);
  }
};

template <typename T, int kRows>
void AddValues(AttendRow* const* rows, const Page<T>* pages, KeyRange range,
               int64_t head_dim) {
  constexpr int kCols = TileCols(kRows);
  int64_t d = 0;
  for (; d + 16 * kCols <= head_dim; d += 16 * kCols) {
    ValueTile<T, kRows, kCols>(rows, pages, range, head_dim, d, WholeAccess());
  }
  for (; d + 16 <= head_dim; d += 16) {
    ValueTile<T, kRows, 1>(rows, pages, range, head_dim, d, WholeAccess());
  }
  if (d < head_dim) {
    ValueTile<T, kRows, 1>(rows, pages, range, head_dim, d,
                           PartAccess{head_dim - d});
  }
}

// The part of a row's keys that lies in the block, relative to its start.
EXPERTMESH_INLINE KeyRange InBlock(const AttendRow& row, int64_t block_start) {
  return {MaxOf(row.first - block_start, 0),
          MinOf(row.last - block_start, kBlock)};
}

// Turns the block's scores into weights and takes them into max and sum;
// returns the factor for what the row has summed so far. The weights are those
// of the values as they lie in `pages`.
template <typename T>
float UpdateSoftmax(AttendRow& row, KeyRange range, const Page<T>* pages) {
  const float lowest = -__builtin_inff();
  for (int64_t j = 0; j < range.first; ++j) row.weights[j] = lowest;
  for (int64_t j = range.last; j < kBlock; ++j) row.weights[j] = lowest;
  F32x16 scores[kBlockPages];
  for (int c = 0; c < kBlockPages; ++c) scores[c] = Load(row.weights + c * 16);
  const float block_max =
      MaxLanes(Max(Max(scores[0], scores[1]), Max(scores[2], scores[3])));
  const float max = row.max > block_max ? row.max : block_max;
  float factor[16];
  Store(factor, Exp(Broadcast(row.max - max)));
  const F32x16 shift = Broadcast(max);
  for (int c = 0; c < kBlockPages; ++c) {
    scores[c] = Exp(Sub(scores[c], shift));
    const float* scales = pages[c].scales;
    Store(row.weights + c * 16,
          scales ? Mul(scores[c], Load(scales)) : scores[c]);
  }
  const float block_sum =
      SumLanes(Add(Add(scores[0], scores[1]), Add(scores[2], scores[3])));
  row.sum = row.sum * factor[0] + block_sum;
  row.max = max;
  return factor[0];
}

void ScaleOut(AttendRow& row, int64_t head_dim, float factor) {
  const F32x16 f = Broadcast(factor);
  Map(
      head_dim, row.out, [&](F32x16 v) { return Mul(v, f); },
      static_cast<const float*>(row.out));
}

// One block of keys for kRows rows that all see some of it.
template <typename T, int kRows>
void AttendBlock(AttendRow* const* rows, const Page<T>* key_pages,
                 const Page<T>* value_pages, int64_t head_dim,
                 int64_t block_start) {
  ScoreRows<T, kRows>(rows, key_pages, head_dim);
  KeyRange ranges[kRows];
  KeyRange common = {0, kBlock};
  for (int r = 0; r < kRows; ++r) {
    ranges[r] = InBlock(*rows[r], block_start);
    common.first = MaxOf(common.first, ranges[r].first);
    common.last = MinOf(common.last, ranges[r].last);
    ScaleOut(*rows[r], head_dim,
             UpdateSoftmax(*rows[r], ranges[r], value_pages));
  }
  if (common.first >= common.last) common = {kBlock, kBlock};
  // Keys before and after the common ones are each row's own affair.
  for (int r = 0; r < kRows; ++r) {
    const KeyRange before = {ranges[r].first,
                             MinOf(common.first, ranges[r].last)};
    if (before.first < before.last) {
      AddValues<T, 1>(rows + r, value_pages, before, head_dim);
    }
  }
  if (common.first < common.last) {
    AddValues<T, kRows>(rows, value_pages, common, head_dim);
  }
  for (int r = 0; r < kRows; ++r) {
    const KeyRange after = {common.last, ranges[r].last};
    if (after.first < after.last) {
      AddValues<T, 1>(rows + r, value_pages, after, head_dim);
    }
  }
}

// Up to kTileRows rows over all their blocks.
template <typename T>
void AttendTile(const AttendArgs& args, AttendRow* tile, int num_rows) {
  int64_t first = tile[0].first;
  int64_t last = tile[0].last;
  for (int r = 1; r < num_rows; ++r) {
    first = MinOf(first, tile[r].first);
    last = MaxOf(last, tile[r].last);
  }
  for (int64_t start = first / kBlock * kBlock; start < last; start += kBlock) {
    AttendRow* rows[kTileRows];
    int active = 0;
    for (int r = 0; r < num_rows; ++r) {
      if (tile[r].first < start + kBlock && start < tile[r].last) {
        rows[active++] = &tile[r];
      }
    }
    // Pages that no row sees may not exist: a neighbour's scores stand in for
    // theirs and are masked.
    const int64_t lowest_page = first / kPage;
    const int64_t highest_page = (last - 1) / kPage;
    Page<T> key_pages[kBlockPages];
    Page<T> value_pages[kBlockPages];
    for (int c = 0; c < kBlockPages; ++c) {
      const int64_t page =
          MinOf(MaxOf(start / kPage + c, lowest_page), highest_page);
      key_pages[c] = PageAt<T>(args.key_pages[page]);
      value_pages[c] = PageAt<T>(args.value_pages[page]);
    }
    if (active == 0) continue;
    WithRowCount(active, [&](auto count) {
      AttendBlock<T, decltype(count)::value>(rows, key_pages, value_pages,
                                             args.head_dim, start);
    });
  }
}

template <typename T>
void Attend(const AttendArgs& args) {
  AttendRow tile[kTileRows];
  for (int64_t begin = 0; begin < args.num_rows; begin += kTileRows) {
    const int num_rows =
        static_cast<int>(MinOf(args.num_rows - begin, kTileRows));
    for (int r = 0; r < num_rows; ++r) {
      const int64_t position = args.positions[begin + r];
      AttendRow& row = tile[r];
      row.query = args.queries + (begin + r) * args.head_dim;
      row.out = args.out + (begin + r) * args.head_dim;
      row.first = args.window > 0 ? MaxOf(position + 1 - args.window, 0) : 0;
      row.last = position + 1;
      row.max = -__builtin_inff();
      row.sum = 0.0f;
      __builtin_memset(row.out, 0, args.head_dim * sizeof(float));
    }
    AttendTile<T>(args, tile, num_rows);
    for (int r = 0; r < num_rows; ++r) {
      ScaleOut(tile[r], args.head_dim, 1.0f / tile[r].sum);
    }
  }
}

}  // namespace
}  // namespace expertmesh
