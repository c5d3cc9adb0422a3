// Groups of few rows: reading the weights is what takes time. A block has one
// pair of strips and all rows of the tile; each of its warps sums one range of
// k, so that many loads are under way at once.

#include "expert_service/kernels/cuda/launch.h"
#include "expert_service/kernels/cuda/product.cuh"

namespace expertmesh::expert {
namespace {

constexpr int kThreads = 32 * kSumRanges;

// Tiles of each strip that a warp has loaded ahead: about as many bytes in each
// format, and fewer where sums need the registers.
template <WeightFormat kFormat, int kRowTiles>
__device__ constexpr int TilesAhead() {
  if (kFormat == WeightFormat::kBF16) return kRowTiles > 2 ? 1 : 2;
  if (kFormat == WeightFormat::kInt8) return 4 / kRowTiles;
  return kRowTiles == 1 ? 4 : 1;
}

// The rows of a lane, in chunks of 8 of k: its first ones of each.
template <int kRowTiles>
struct Rows {
  const uint4* x;
  uint32_t at[kRowTiles];
};

// A lane's sums: of kStrips strips and so many times eight rows.
template <int kRowTiles>
using Sums = float[kStrips][kRowTiles][4];

template <WeightFormat kFormat, int kRowTiles>
__device__ __forceinline__ void MultiplyTile(
    const WeightTile<kFormat> (&weights)[kStrips], const Rows<kRowTiles>& rows,
    int tile, Sums<kRowTiles>& sums) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint4 x[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      x[r] = Load16(rows.x + rows.at[r] + tile * (kTileK / 8) + half * 4);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        uint32_t a[4];
        weights[strip].Operand(half * 2 + i, a);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          Mma(a, i == 0 ? x[r].x : x[r].z, i == 0 ? x[r].y : x[r].w,
              sums[strip][r]);
        }
      }
    }
  }
}

// Tiles [begin, end) of k.
template <WeightFormat kFormat, int kRowTiles>
__device__ __forceinline__ void SumRange(const StripReader (&strips)[kStrips],
                                         const Rows<kRowTiles>& rows, int begin,
                                         int end, Sums<kRowTiles>& sums) {
  constexpr int kAhead = TilesAhead<kFormat, kRowTiles>();
  WeightTile<kFormat> ahead[kAhead][kStrips];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (begin + i >= end) continue;
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      ahead[i][strip].Load(strips[strip], begin + i);
    }
  }
  for (int tile = begin; tile < end; tile += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (tile + i >= end) continue;
      MultiplyTile<kFormat, kRowTiles>(ahead[i], rows, tile + i, sums);
      if (tile + i + kAhead >= end) continue;
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        ahead[i][strip].Load(strips[strip], tile + i + kAhead);
      }
    }
  }
}

// The tile and the pair of strips of this block, read anew where they are used:
// registers are for weights in between.
__device__ __forceinline__ RowTile TileOfBlock(const ProductArgs& args,
                                               int num_pairs) {
  return args.tiles[blockIdx.x / num_pairs];
}
__device__ __forceinline__ int PairOfBlock(int num_pairs) {
  return static_cast<int>(blockIdx.x % num_pairs);
}

// Sums of the ranges in shared memory.
//   [range][strip][8 rows][4 of C][lane]
template <int kRowTiles>
inline constexpr int kRangeFloats = kStrips* kRowTiles * 4 * 32;

// The sums of the calling warp's range.
template <WeightFormat kFormat, Product kProduct, int kRowTiles>
__device__ __forceinline__ void SumOwnRange(const ProductArgs& args,
                                            int num_pairs, float* shared) {
  const RowTile tile = TileOfBlock(args, num_pairs);
  const int pair = PairOfBlock(num_pairs);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t padded_k = PaddedExtent(args.k);
  const int k_tiles = static_cast<int>(padded_k / kTileK);
  StripReader strips[kStrips];
#pragma unroll
  for (int strip = 0; strip < kStrips; ++strip) {
    strips[strip] = StripOf<kFormat>(
        MatrixOf<kProduct>(args.experts[tile.group], strip),
        FirstOutput<kProduct>(pair, strip) / kStripOutputs, k_tiles, lane);
  }
  // Rows behind the last are the last once more; nobody looks at their sums.
  Rows<kRowTiles> rows;
  rows.x = static_cast<const uint4*>(args.x);
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    const int row = min(r * 8 + lane / 4, tile.num_rows - 1);
    rows.at[r] = static_cast<uint32_t>((tile.first_row + row) * (padded_k / 8) +
                                       lane % 4);
  }
  Sums<kRowTiles> sums = {};
  SumRange<kFormat, kRowTiles>(strips, rows, RangeBegin(k_tiles, warp),
                               RangeBegin(k_tiles, warp + 1), sums);
#pragma unroll
  for (int i = 0; i < kRangeFloats<kRowTiles> / 32; ++i) {
    shared[warp * kRangeFloats<kRowTiles> + i * 32 + lane] =
        sums[i / 4 / kRowTiles][i / 4 % kRowTiles][i % 4];
  }
}

// Adds the ranges' sums up and stores what comes of them.
template <WeightFormat kFormat, Product kProduct, int kRowTiles>
__device__ __forceinline__ void AddRanges(const ProductArgs& args,
                                          int num_pairs, const float* shared) {
  constexpr int kStripFloats = kRangeFloats<kRowTiles> / kStrips;
  const RowTile tile = TileOfBlock(args, num_pairs);
  const int ranges =
      min(static_cast<int>(PaddedExtent(args.k) / kTileK), kSumRanges);
  for (int i = static_cast<int>(threadIdx.x); i < kStripFloats; i += kThreads) {
    const int lane = i % 32;
    const int c = i / 32 % 4;
    const int row = i / 128 * 8 + lane % 4 * 2 + c % 2;
    if (row >= tile.num_rows) continue;
    float totals[kStrips] = {};
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      for (int range = 0; range < ranges; ++range) {
        totals[strip] +=
            shared[range * kRangeFloats<kRowTiles> + strip * kStripFloats + i];
      }
    }
    StoreOutputs<kFormat, kProduct>(
        args, args.experts[tile.group], tile.first_row + row,
        PairOfBlock(num_pairs), lane / 4 + c / 2 * 8, totals[0], totals[1]);
  }
}

template <WeightFormat kFormat, Product kProduct, int kRowTiles>
__device__ __forceinline__ void RunTile(const ProductArgs& args, int num_pairs,
                                        float* shared) {
  SumOwnRange<kFormat, kProduct, kRowTiles>(args, num_pairs, shared);
  __syncthreads();
  AddRanges<kFormat, kProduct, kRowTiles>(args, num_pairs, shared);
}

template <WeightFormat kFormat, Product kProduct>
__global__ void __launch_bounds__(kThreads, 2)
    SmallTiles(ProductArgs args, int num_pairs) {
  __shared__ float shared[kSumRanges * kRangeFloats<kSmallRows / 8>];
  const int num_rows = TileOfBlock(args, num_pairs).num_rows;
  if (num_rows == 0) return;
  if (num_rows <= 8) {
    RunTile<kFormat, kProduct, 1>(args, num_pairs, shared);
  } else if (num_rows <= 16) {
    RunTile<kFormat, kProduct, 2>(args, num_pairs, shared);
  } else {
    RunTile<kFormat, kProduct, 4>(args, num_pairs, shared);
  }
}

}  // namespace

cudaError_t LaunchSmallTiles(const ProductArgs& args, Product product,
                             WeightFormat format, cudaStream_t stream) {
  const int pairs = NumStripPairs(product, args.n);
  const int64_t blocks = static_cast<int64_t>(args.num_tiles) * pairs;
  return WithTensorFormat(format, [&]<WeightFormat kFormat>() {
    return Launch(product == Product::kGateUp
                      ? SmallTiles<kFormat, Product::kGateUp>
                      : SmallTiles<kFormat, Product::kDown>,
                  blocks, kThreads, 0, stream, args, pairs);
  });
}

}  // namespace expertmesh::expert
