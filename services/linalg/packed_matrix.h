#pragma once

// A weight matrix in the order that the kernels read it.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "services/core/worker_pool.h"
#include "services/linalg/buffer.h"
#include "services/linalg/isa/panel_layout.h"
#include "services/linalg/tensor_view.h"
#include "services/linalg/weight_format.h"

namespace expertmesh {

// How a matrix is packed; changes no bit of it.
struct PackOptions {
  // Spreads panels over threads; unset: the caller's thread alone.
  WorkerPool* pool = nullptr;
  // Called with rows of a part once they have been read for the last time, so
  // that their pages can go; from any of the threads. All rows are reported
  // unless packing fails.
  std::function<void(const TensorView& rows)> packed = nullptr;
};

// A [n, k] matrix in panels of kPanelWidth outputs (isa/panel_layout.h).
// Padding adds nothing to a product. Immutable, so that copies share the
// panels; thread-safe.
class PackedMatrix {
 public:
  PackedMatrix() = default;

  // Packs the rows of `parts` one under the other: [sum of rows, k]. All parts
  // must be 2-D with equal k and dtype. To the format of that dtype, to f32 or
  // bf16 (rounded to nearest), or quantized (quantize.h).
  // Errors: INVALID_ARGUMENT on shapes that do not fit, for f16 from another
  // type, and for weights that are not finite where they would be quantized;
  // RESOURCE_EXHAUSTED where there is no memory to quantize in.
  static absl::StatusOr<PackedMatrix> Pack(absl::Span<const TensorView> parts,
                                           WeightFormat format,
                                           const PackOptions& options = {});
  static absl::StatusOr<PackedMatrix> Pack(const TensorView& weight,
                                           WeightFormat format,
                                           const PackOptions& options = {});
  // Keeps the parts' own type.
  static absl::StatusOr<PackedMatrix> Pack(absl::Span<const TensorView> parts);
  static absl::StatusOr<PackedMatrix> Pack(const TensorView& weight);

  // One that lies elsewhere as Pack would have it, 64-byte aligned, of
  // PackedBytes(n, k, format) bytes.
  static PackedMatrix FromPanels(int64_t n, int64_t k, WeightFormat format,
                                 std::shared_ptr<const std::byte> panels);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  WeightFormat format() const { return format_; }
  int64_t num_panels() const { return (n_ + kPanelWidth - 1) / kPanelWidth; }
  // Start of a panel, 64-byte aligned.
  const std::byte* panel(int64_t index) const {
    return panels_.get() + index * panel_bytes_;
  }
  size_t size_bytes() const {
    return static_cast<size_t>(num_panels() * panel_bytes_);
  }

 private:
  int64_t n_ = 0;
  int64_t k_ = 0;
  WeightFormat format_ = WeightFormat::kF32;
  int64_t panel_bytes_ = 0;
  std::shared_ptr<const std::byte> panels_;
};

}  // namespace expertmesh
