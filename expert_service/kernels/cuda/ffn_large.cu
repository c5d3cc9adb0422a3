// Groups of many rows: weights are reused. A block has 64 rows of a group and
// four pairs of strips, one for each warp. Rows go through shared memory, a
// tile of k at a time and some tiles ahead; weights come to their warp alone.

#include "expert_service/kernels/cuda/launch.h"
#include "expert_service/kernels/cuda/product.cuh"

namespace expertmesh::expert {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
// That a multiprocessor is to hold, for which registers have to do.
constexpr int kBlocks = 3;
constexpr int kRowTiles = kLargeRows / 8;
constexpr int kStages = 3;
// Of the rows in one stage: [64 rows][8 chunks of 16 bytes]. Odd rows have
// their halves swapped, so that eight lanes meet all banks when they read.
constexpr int kChunks = kTileK / 8;
constexpr int kStageChunks = kLargeRows * kChunks;

__device__ __forceinline__ int ChunkAt(int row, int chunk) {
  return row * kChunks + (chunk ^ (row % 2 * 4));
}

// A lane's sums of the range that it is at. The totals of the ranges before lie
// in shared memory, a column for each thread: registers would not do for both.
using Sums = float[kStrips][kRowTiles][4];
constexpr int kSums = kStrips * kRowTiles * 4;

struct Shared {
  uint4 stages[kStages][kStageChunks];
  float totals[kSums][kThreads];
};

// Row tiles in front: blocks that run together share weights.
__device__ __forceinline__ int PairOfWarp(const ProductArgs& args) {
  return static_cast<int>(blockIdx.x / args.num_tiles) * kWarps +
         static_cast<int>(threadIdx.x) / 32;
}

// Copies rows to shared memory: of each tile of k some chunks per thread.
class RowCopier {
 public:
  __device__ __forceinline__ RowCopier(const ProductArgs& args,
                                       const RowTile& tile) {
    const int64_t row_chunks = PaddedExtent(args.k) / 8;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      // Rows behind the last are the last once more.
      const int row = min(At(i) / kChunks, tile.num_rows - 1);
      from_[i] = static_cast<uint32_t>((tile.first_row + row) * row_chunks +
                                       At(i) % kChunks);
    }
  }

  // Begins with one tile of k.
  __device__ __forceinline__ void Begin(const ProductArgs& args, int k_tile,
                                        uint4* stage) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      CopyAsync16(
          &stage[ChunkAt(At(i) / kChunks, At(i) % kChunks)],
          static_cast<const uint4*>(args.x) + from_[i] + k_tile * kChunks);
    }
  }

 private:
  static constexpr int kCopies = kStageChunks / kThreads;

  // A chunk of the stage that this thread brings.
  static __device__ __forceinline__ int At(int i) {
    return static_cast<int>(threadIdx.x) + i * kThreads;
  }

  uint32_t from_[kCopies];  // in the first tile of k, in chunks of all rows
};

// Two of a tile's mma: one half of its k.
template <WeightFormat kFormat>
__device__ __forceinline__ void MultiplyHalf(
    const WeightTile<kFormat> (&weights)[kStrips], int half, const uint4* stage,
    int lane, Sums& sums) {
  uint32_t a[2][kStrips][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      weights[strip].Operand(half * 2 + i, a[i][strip]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    const uint4 b = stage[ChunkAt(r * 8 + lane / 4, half * 4 + lane % 4)];
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      Mma(a[0][strip], b.x, b.y, sums[strip][r]);
      Mma(a[1][strip], b.z, b.w, sums[strip][r]);
    }
  }
}

__device__ __forceinline__ void AddRange(const Sums& sums, float* totals) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    // Keeps totals from being loaded all at once, which registers are not for.
    if (i % 16 == 0) __syncwarp();
    totals[i * kThreads] += sums[i / 4 / kRowTiles][i / 4 % kRowTiles][i % 4];
  }
}

// What the totals come to, of the calling warp's pair. All about the block is
// looked up anew: registers were for sums.
template <WeightFormat kFormat, Product kProduct>
__device__ __forceinline__ void StoreTotals(const ProductArgs& args,
                                            int num_pairs,
                                            const float* totals) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const RowTile tile = args.tiles[blockIdx.x % args.num_tiles];
  const int pair = PairOfWarp(args);
  if (pair >= num_pairs) return;
#pragma unroll 4
  for (int i = 0; i < kSums / kStrips; ++i) {
    const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (row >= tile.num_rows) continue;
    StoreOutputs<kFormat, kProduct>(
        args, args.experts[tile.group], tile.first_row + row, pair,
        lane / 4 + i % 4 / 2 * 8, totals[i * kThreads],
        totals[(kSums / kStrips + i) * kThreads]);
  }
}

template <WeightFormat kFormat, Product kProduct>
__global__ void __launch_bounds__(kThreads, kBlocks)
    LargeTiles(ProductArgs args, int num_pairs) {
  auto& shared = *reinterpret_cast<Shared*>(DynamicShared());
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const RowTile tile = args.tiles[blockIdx.x % args.num_tiles];
  const int pair = PairOfWarp(args);
  const CudaExpertView& expert = args.experts[tile.group];
  const int k_tiles = static_cast<int>(PaddedExtent(args.k) / kTileK);

  StripReader strips[kStrips];
#pragma unroll
  for (int strip = 0; strip < kStrips; ++strip) {
    // Warps behind the last pair do as it does, and store nothing.
    strips[strip] = StripOf<kFormat>(
        MatrixOf<kProduct>(expert, strip),
        FirstOutput<kProduct>(min(pair, num_pairs - 1), strip) / kStripOutputs,
        k_tiles, lane);
  }
  WeightTile<kFormat> weights[kStrips];
  const auto load_half = [&](int k_tile, int half, auto& to) {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      to[strip].LoadFor(strips[strip], k_tile, half * 2, half * 2 + 2);
    }
  };
  load_half(0, 0, weights);
  const RowCopier rows(args, tile);
  // Every turn closes a group of copies, empty ones in the end, so that turn i
  // waits for group i.
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < k_tiles) rows.Begin(args, i, shared.stages[i]);
    CommitCopies();
  }

  float* const totals = &shared.totals[0][threadIdx.x];
#pragma unroll
  for (int s = 0; s < kSums; ++s) totals[s * kThreads] = 0.0f;
  int i = 0;
#pragma unroll 1  // there are no registers for more
  for (int range = 0; range < kSumRanges; ++range) {
    const int end = RangeBegin(k_tiles, range + 1);
    Sums sums = {};
    for (; i < end; ++i) {
      WaitForCopies<kStages - 2>();
      __syncthreads();  // the tile is there, and the one before has been read
      const int next = i + kStages - 1;
      if (next < k_tiles) {
        rows.Begin(args, next, shared.stages[next % kStages]);
      }
      CommitCopies();
      const uint4* const stage = shared.stages[i % kStages];
      WeightTile<kFormat> weights_ahead[kStrips];
      load_half(i, 1, weights);
      MultiplyHalf<kFormat>(weights, 0, stage, lane, sums);
      load_half(min(i + 1, k_tiles - 1), 0, weights_ahead);
      MultiplyHalf<kFormat>(weights, 1, stage, lane, sums);
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        weights[strip] = weights_ahead[strip];
      }
    }
    AddRange(sums, totals);
  }
  StoreTotals<kFormat, kProduct>(args, num_pairs, totals);
}

}  // namespace

cudaError_t LaunchLargeTiles(const ProductArgs& args, Product product,
                             WeightFormat format, cudaStream_t stream) {
  const int pairs = NumStripPairs(product, args.n);
  const int64_t blocks =
      static_cast<int64_t>(args.num_tiles) * ((pairs + kWarps - 1) / kWarps);
  return WithTensorFormat(format, [&]<WeightFormat kFormat>() {
    return Launch(product == Product::kGateUp
                      ? LargeTiles<kFormat, Product::kGateUp>
                      : LargeTiles<kFormat, Product::kDown>,
                  blocks, kThreads, sizeof(Shared), stream, args, pairs);
  });
}

}  // namespace expertmesh::expert
