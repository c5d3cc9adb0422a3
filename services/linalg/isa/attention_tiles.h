#pragma once

// Rows of queries times the keys and values of one block: the register tiles of
// attention_body.h, which says what they compute.

namespace expertmesh {
namespace {

constexpr int64_t kPage = 16;
constexpr int kBlockPages = 4;
constexpr int64_t kBlock = kPage * kBlockPages;

// Asks for the line of p to be brought near.
EXPERTMESH_INLINE void Fetch(const void* p) { __builtin_prefetch(p, 0, 2); }

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

// One row while its blocks pass.
struct AttendRow {
  const float* query;
  float* out;
  int64_t first;  // key positions [first, last)
  int64_t last;
  float max;
  float sum;
};

// Of one row and block: scores, then their exponentials.
using Weights = float[kBlock];

struct KeyRange {
  int64_t first;
  int64_t last;
};

EXPERTMESH_INLINE int64_t MinOf(int64_t a, int64_t b) { return a < b ? a : b; }
EXPERTMESH_INLINE int64_t MaxOf(int64_t a, int64_t b) { return a > b ? a : b; }

// Scores of kRows rows against kCols pages of 16 keys. Where `next` is not
// null, the keys of those pages are fetched meanwhile.
template <typename T, int kRows, int kCols>
void ScoreTile(AttendRow* const* rows, Weights* weights, const Page<T>* pages,
               const Page<T>* next, int first, int64_t head_dim) {
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
    for (int c = 0; c < kCols; ++c) {
      keys[c] = Load(pages[first + c].elements + d * kPage);
      if (next) Fetch(next[first + c].elements + d * kPage);
    }
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
      const float* scales = pages[first + c].scales;
      Store(weights[r] + (first + c) * kPage,
            scales ? Mul(acc[r][c], Load(scales)) : acc[r][c]);
    }
  }
}

template <typename T, int kRows>
void ScoreRows(AttendRow* const* rows, Weights* weights, const Page<T>* pages,
               const Page<T>* next, int64_t head_dim) {
  constexpr int kCols = TileCols(kRows);
  for (int c = 0; c < kBlockPages; c += kCols) {
    ScoreTile<T, kRows, kCols>(rows, weights, pages, next, c, head_dim);
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

// Dimensions [d, d + 16 kCols) of kRows outputs take the keys of `range`, which
// all these rows see. `Access` loads and stores 16 dimensions.
template <typename T, int kRows, int kCols, typename Access>
void ValueTile(AttendRow* const* rows, const Weights* weights,
               const Page<T>* pages, const Page<T>* next, KeyRange range,
               int64_t head_dim, int64_t d, Access access) {
  F32x16 acc[kRows][kCols];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      acc[r][c] = access.Get(rows[r]->out + d + c * 16);
    }
  }
  for (int64_t j = range.first; j < range.last; ++j) {
    const int64_t at = (j % kPage) * head_dim + d;
    const T* value = pages[j / kPage].elements + at;
    F32x16 values[kCols];
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      values[c] = access.Get(value + c * 16);
      if (next) Fetch(next[j / kPage].elements + at + c * 16);
    }
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

template <typename T, int kRows>
void AddValues(AttendRow* const* rows, const Weights* weights,
               const Page<T>* pages, const Page<T>* next, KeyRange range,
               int64_t head_dim) {
  if (range.first >= range.last) return;
  constexpr int kCols = TileCols(kRows);
  int64_t d = 0;
  for (; d + 16 * kCols <= head_dim; d += 16 * kCols) {
    ValueTile<T, kRows, kCols>(rows, weights, pages, next, range, head_dim, d,
                               WholeAccess());
  }
  for (; d + 16 <= head_dim; d += 16) {
    ValueTile<T, kRows, 1>(rows, weights, pages, next, range, head_dim, d,
                           WholeAccess());
  }
  if (d < head_dim) {
    ValueTile<T, kRows, 1>(rows, weights, pages, next, range, head_dim, d,
                           PartAccess{head_dim - d});
  }
}

}  // namespace
}  // namespace expertmesh
