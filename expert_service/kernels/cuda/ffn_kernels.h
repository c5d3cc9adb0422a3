#pragma once

// The device's side of GroupedFfn (stop 6d): weights as its kernels read them,
// and the launch of a batch. Plain data and launches in
// a stream; who owns memory and waits for streams is not known here.
//
// Bf16, int8 and int4 weights are multiplied by tensor cores, as bf16, which
// holds all their codes; sums are f32. Rows of f32 are rounded to bf16 first;
// the codes of int8 rows are taken as they are and their scale multiplies the
// sums. The product of gate and up is rounded to bf16. f32 and f16 weights go
// through a plain kernel in f32, where the product of gate and up is rounded
// only if the rows are bf16. A row's result depends on nothing but the row and
// its expert (fragment_layout.h); but not so for weights in rows, where a
// library multiplies, and rounds gate, up and y to bf16.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "expert_service/kernels/cuda/ffn_tables.h"
#include "services/core/dtype.h"
#include "services/linalg/weight_format.h"

namespace expertmesh::expert {

class GroupedGemm;

// How bf16 weights lie in device memory.
enum class WeightOrder {
  kFragments,  // for our kernels, whose bits are the same for any batch
  kRows,       // for libraries: [padded n, padded k], zeros behind n and k
};

// One matrix [n, k] in device memory (fragment_layout.h, or
// WeightOrder::kRows).
struct CudaMatrix {
  const void* fragments = nullptr;
  const void* steps = nullptr;    // int4: multipliers
  const float* scales = nullptr;  // int8, int4: one per output
};

struct CudaExpertView {
  CudaMatrix gate;  // [intermediate_size, hidden_size]
  CudaMatrix up;    // [intermediate_size, hidden_size]
  CudaMatrix down;  // [hidden_size, intermediate_size]
};

// What a matrix takes in device memory, and where its parts are once it lies at
// `data`, which is 256-byte aligned.
int64_t CudaMatrixBytes(int64_t n, int64_t k, WeightFormat format);
CudaMatrix CudaMatrixAt(const void* data, int64_t n, int64_t k,
                        WeightFormat format);

// Brings a matrix into `to`, CudaMatrixBytes in device memory, 256-byte
// aligned. `from` is device memory too.
//
// From a tensor [n, k] of `dtype`: to the format of that dtype, or to bf16
// (rounded to nearest) or f32. Errors: cudaErrorInvalidValue for others.
cudaError_t LaunchRepackTensor(const void* from, DType dtype, int64_t n,
                               int64_t k, WeightFormat format,
                               WeightOrder order, void* to,
                               cudaStream_t stream);
// From the panels of a PackedMatrix of the same format.
cudaError_t LaunchRepackPanels(const void* from, int64_t n, int64_t k,
                               WeightFormat format, WeightOrder order, void* to,
                               cudaStream_t stream);

// The same for all experts of a service.
struct FfnShape {
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  WeightFormat format = WeightFormat::kBF16;
  WeightOrder order = WeightOrder::kFragments;  // kRows: bf16 only
};

// Into which tiles rows are cut.
TileRows TileRowsOf(const FfnShape& shape);

// Room for what lies between the products of a batch of so many rows.
int64_t FfnWorkspaceBytes(const FfnShape& shape, int64_t max_rows);

// One batch. All pointers are device memory, 256-byte aligned, which stays as
// it is until the stream has come past the launch.
struct FfnBatch {
  FfnShape shape;
  DType dtype = DType::kBF16;  // of x and y: f32, bf16 or int8
  int64_t num_rows = 0;
  FfnTables tables;                    // as WriteFfnTables said
  const void* table_memory = nullptr;  // what it wrote
  const void* x = nullptr;    // [num_rows, hidden_size], rows RowBytes apart
  void* y = nullptr;          // likewise, or as GroupedRows says of reductions
  void* workspace = nullptr;  // FfnWorkspaceBytes
  // With weights in rows, where there are large tiles: the library, and the
  // tiles in host memory.
  GroupedGemm* gemm = nullptr;
  const RowTile* large_tiles = nullptr;
};

// Runs down(silu(gate x) · up x) of every row; `num_rows` may be more than
// there are, up to the tables' room. Errors are those of launching.
cudaError_t LaunchGroupedFfn(const FfnBatch& batch, cudaStream_t stream);

}  // namespace expertmesh::expert
