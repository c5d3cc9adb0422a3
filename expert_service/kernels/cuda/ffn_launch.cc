#include <algorithm>

#include "expert_service/kernels/cuda/ffn_kernels.h"
#include "expert_service/kernels/cuda/ffn_stages.h"
#include "expert_service/kernels/cuda/fragment_layout.h"
#include "expert_service/kernels/cuda/grouped_gemm.h"

namespace expertmesh::expert {
namespace {

constexpr int64_t kAlignment = 256;

int64_t Aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// What lies between the products, in bytes from the start of the workspace.
struct Workspace {
  Workspace(const FfnShape& shape, int64_t num_rows) {
    const bool is_bf16 = UsesTensorCores(shape.format);
    const auto row_bytes = [&](int64_t n) {
      return is_bf16 ? PaddedExtent(n) * 2 : n * 4;
    };
    // Of int8 outputs too, before they are added up.
    scales = Aligned(num_rows * std::max(row_bytes(shape.hidden_size),
                                         4 + shape.hidden_size));
    h = scales + Aligned(num_rows * 4);
    y = h + Aligned(num_rows * row_bytes(shape.intermediate_size));
    gemm_rows = y + Aligned(num_rows * shape.hidden_size * 4);
    gemm_matrices = size = gemm_rows;
    if (shape.order == WeightOrder::kFragments) return;
    // Of gate and up; then of down in the same place.
    gemm_row_bytes = std::max(2 * row_bytes(shape.intermediate_size),
                              row_bytes(shape.hidden_size));
    gemm_matrices += Aligned(num_rows * gemm_row_bytes);
    max_gemms = 2 * (num_rows / (kFewRows + 1));
    size = gemm_matrices + Aligned(3 * max_gemms * 8);
  }

  int64_t x = 0;   // as products take it: bf16 [rows, padded], or f32
  int64_t scales;  // f32 [rows], of rows of int8
  int64_t h;       // as x
  int64_t y;       // [rows, hidden_size], where more is done to it; at most f32
  // For a library: what its products give, and where their matrices are.
  int64_t gemm_rows;
  int64_t gemm_matrices;
  int64_t gemm_row_bytes = 0;
  int64_t max_gemms = 0;
  int64_t size;
};

class FfnLaunch {
 public:
  FfnLaunch(const FfnBatch& batch, cudaStream_t stream)
      : batch_(batch),
        stream_(stream),
        at_(batch.shape, batch.num_rows),
        is_plain_(!UsesTensorCores(batch.shape.format)),
        is_int8_(batch.dtype == DType::kInt8),
        is_reduced_(batch.tables.is_reduced) {}

  cudaError_t Run() {
    const void* x = nullptr;
    cudaError_t error = PrepareX(&x);
    if (error == cudaSuccess) error = RunProduct(Product::kGateUp, GateUp(x));
    if (error == cudaSuccess) error = RunProduct(Product::kDown, Down());
    if (error == cudaSuccess && is_int8_) error = QuantizeY();
    if (error == cudaSuccess && is_reduced_) error = ReduceY();
    return error;
  }

 private:
  void* Space(int64_t offset) const {
    return static_cast<std::byte*>(batch_.workspace) + offset;
  }

  // Brings rows into the form that products take, unless they come in it.
  cudaError_t PrepareX(const void** x) {
    const int64_t hidden = batch_.shape.hidden_size;
    const bool is_ready = is_plain_ ? batch_.dtype == DType::kF32
                                    : batch_.dtype == DType::kBF16 &&
                                          PaddedExtent(hidden) == hidden;
    if (is_ready) {
      *x = batch_.x;
      return cudaSuccess;
    }
    *x = Space(at_.x);
    if (is_plain_) {
      return LaunchRowsToF32(batch_.x, batch_.dtype, batch_.num_rows, hidden,
                             static_cast<float*>(Space(at_.x)), stream_);
    }
    return LaunchRowsToBf16(batch_.x, batch_.dtype, batch_.num_rows, hidden,
                            static_cast<uint16_t*>(Space(at_.x)),
                            static_cast<float*>(Space(at_.scales)), stream_);
  }

  cudaError_t QuantizeY() const {
    return LaunchQuantizeRows(static_cast<const float*>(Space(at_.y)),
                              batch_.num_rows, batch_.shape.hidden_size,
                              QuantizedY(), stream_);
  }
  // Nobody reads x any more.
  void* QuantizedY() const { return is_reduced_ ? Space(at_.x) : batch_.y; }

  cudaError_t ReduceY() const {
    const auto* const tables =
        static_cast<const std::byte*>(batch_.table_memory);
    return LaunchReduceRows(
        tables + batch_.tables.reduction_at, batch_.tables.room.num_rows,
        is_int8_ ? QuantizedY() : Space(at_.y), batch_.dtype,
        batch_.shape.hidden_size, batch_.y, stream_);
  }

  ProductArgs GateUp(const void* x) const {
    ProductArgs args = {};
    args.n = static_cast<int32_t>(batch_.shape.intermediate_size);
    args.k = static_cast<int32_t>(batch_.shape.hidden_size);
    args.x = x;
    if (is_int8_ && !is_plain_) {
      args.row_scales = static_cast<const float*>(Space(at_.scales));
    }
    args.out = Space(at_.h);
    args.rounds_h = batch_.dtype == DType::kBF16;
    return args;
  }

  ProductArgs Down() const {
    ProductArgs args = {};
    args.n = static_cast<int32_t>(batch_.shape.hidden_size);
    args.k = static_cast<int32_t>(batch_.shape.intermediate_size);
    args.x = Space(at_.h);
    args.out = is_int8_ || is_reduced_ ? Space(at_.y) : batch_.y;
    args.is_f32 = batch_.dtype != DType::kBF16;
    return args;
  }

  cudaError_t RunProduct(Product product, ProductArgs args) const {
    const FfnTables& tables = batch_.tables;
    args.experts = static_cast<const CudaExpertView*>(batch_.table_memory);
    args.tiles =
        reinterpret_cast<const RowTile*>(args.experts + tables.room.num_groups);
    args.num_tiles = tables.num_small;
    const WeightFormat format = batch_.shape.format;
    if (batch_.shape.order == WeightOrder::kRows) {
      return RunWithLibrary(product, args);
    }
    if (is_plain_) {
      args.num_tiles += tables.num_large;
      return LaunchPlainTiles(args, product, format, stream_);
    }
    const cudaError_t error = LaunchSmallTiles(args, product, format, stream_);
    if (error != cudaSuccess) return error;
    args.tiles += tables.num_small;
    args.num_tiles = tables.num_large;
    return LaunchLargeTiles(args, product, format, stream_);
  }

  // Small tiles by a kernel of ours, large ones by the library.
  cudaError_t RunWithLibrary(Product product, ProductArgs args) const {
    cudaError_t error = LaunchFewRows(args, product, stream_);
    args.tiles += args.num_tiles;
    args.num_tiles = batch_.tables.num_large;
    if (error != cudaSuccess || args.num_tiles == 0) return error;
    // What comes out of down may be what is wanted.
    const bool is_final = product == Product::kDown && !args.is_f32 &&
                          PaddedExtent(args.n) == args.n;
    auto* const first =
        static_cast<uint16_t*>(is_final ? args.out : Space(at_.gemm_rows));
    const GemmRows rows = {first,
                           first + batch_.num_rows * PaddedExtent(args.n)};
    const auto matrices = static_cast<const void**>(Space(at_.gemm_matrices));
    const GemmMatrices to = {matrices, matrices + at_.max_gemms,
                             const_cast<void**>(matrices + 2 * at_.max_gemms)};
    error = LaunchGemmPointers(args, product, rows, to, stream_);
    if (error == cudaSuccess) error = RunGemms(product, args, to);
    if (error != cudaSuccess || is_final) return error;
    return LaunchFinishGemms(args, product, rows, stream_);
  }

  cudaError_t RunGemms(Product product, const ProductArgs& args,
                       const GemmMatrices& matrices) const {
    GroupedGemm::Products gemms;
    gemms.groups = batch_.large_tiles;
    gemms.num_groups = args.num_tiles;
    gemms.per_group = product == Product::kGateUp ? 2 : 1;
    gemms.n = static_cast<int>(PaddedExtent(args.n));
    gemms.k = static_cast<int>(PaddedExtent(args.k));
    gemms.w = matrices.w;
    gemms.x = matrices.x;
    gemms.y = matrices.y;
    return batch_.gemm->Launch(gemms);
  }

  const FfnBatch& batch_;
  const cudaStream_t stream_;
  const Workspace at_;
  const bool is_plain_;
  const bool is_int8_;
  const bool is_reduced_;
};

}  // namespace

int64_t CudaMatrixBytes(int64_t n, int64_t k, WeightFormat format) {
  return PartsOf(n, k, format).size;
}

CudaMatrix CudaMatrixAt(const void* data, int64_t n, int64_t k,
                        WeightFormat format) {
  const auto* const bytes = static_cast<const std::byte*>(data);
  const MatrixParts parts = PartsOf(n, k, format);
  CudaMatrix matrix = {.fragments = data};
  if (format == WeightFormat::kInt4) matrix.steps = bytes + parts.steps;
  if (HasScales(format)) {
    matrix.scales = reinterpret_cast<const float*>(bytes + parts.scales);
  }
  return matrix;
}

TileRows TileRowsOf(const FfnShape& shape) {
  constexpr int kAllRows = 1 << 30;
  return shape.order == WeightOrder::kRows ? TileRows{kFewRows, kAllRows}
                                           : TileRows{kSmallRows, kLargeRows};
}

int64_t FfnWorkspaceBytes(const FfnShape& shape, int64_t max_rows) {
  return Workspace(shape, max_rows).size;
}

cudaError_t LaunchGroupedFfn(const FfnBatch& batch, cudaStream_t stream) {
  return FfnLaunch(batch, stream).Run();
}

}  // namespace expertmesh::expert
