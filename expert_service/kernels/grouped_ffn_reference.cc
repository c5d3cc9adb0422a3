#include "expert_service/kernels/grouped_ffn_reference.h"

#include <cmath>
#include <vector>

namespace expertmesh::expert {
namespace {

// Weight [n, k] out of the packed layout that gemm.h describes.
float WeightAt(const PackedMatrix& w, int64_t n, int64_t k) {
  const std::byte* panel = w.panel(n / kPanelWidth);
  const int64_t column = n % kPanelWidth;
  if (w.dtype() == DType::kF32) {
    return reinterpret_cast<const float*>(panel)[k * kPanelWidth + column];
  }
  const uint16_t half = reinterpret_cast<const uint16_t*>(
      panel)[(k / 2 * kPanelWidth + column) * 2 + k % 2];
  return w.dtype() == DType::kBF16 ? ToF32(BF16{half}) : F16ToF32(half);
}

float ElementAt(const void* data, DType dtype, int64_t index) {
  return dtype == DType::kF32 ? static_cast<const float*>(data)[index]
                              : ToF32(static_cast<const BF16*>(data)[index]);
}

void SetElement(void* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::kF32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<BF16*>(data)[index] = ToBF16(value);
  }
}

float RoundTo(DType dtype, float x) {
  return dtype == DType::kF32 ? x : ToF32(ToBF16(x));
}

float Product(const std::vector<float>& x, const PackedMatrix& w, int64_t n) {
  float sum = 0;
  for (int64_t k = 0; k < w.k(); ++k) {
    sum = std::fma(x[k], WeightAt(w, n, k), sum);
  }
  return sum;
}

class GroupedFfnReference final : public GroupedFfn {
 public:
  explicit GroupedFfnReference(const GroupedFfnOptions& options)
      : options_(options) {}

  absl::Status Run(const GroupedRows& rows) override {
    for (size_t g = 0; g < rows.experts.size(); ++g) {
      for (int64_t row = rows.group_offsets[g]; row < rows.group_offsets[g + 1];
           ++row) {
        RunRow(rows, *rows.experts[g], row);
      }
    }
    return absl::OkStatus();
  }

 private:
  void RunRow(const GroupedRows& rows, const PackedExpert& expert,
              int64_t row) const {
    std::vector<float> x(options_.hidden_size);
    std::vector<float> h(options_.intermediate_size);
    for (int64_t i = 0; i < options_.hidden_size; ++i) {
      x[i] = ElementAt(rows.x, rows.dtype, row * options_.hidden_size + i);
    }
    for (int64_t i = 0; i < options_.intermediate_size; ++i) {
      const float gate = Product(x, expert.gate_proj, i);
      const float up = Product(x, expert.up_proj, i);
      h[i] = RoundTo(rows.dtype, gate / (1.0f + std::exp(-gate)) * up);
    }
    for (int64_t i = 0; i < options_.hidden_size; ++i) {
      SetElement(rows.y, rows.dtype, row * options_.hidden_size + i,
                 Product(h, expert.down_proj, i));
    }
  }

  const GroupedFfnOptions options_;
};

}  // namespace

std::unique_ptr<GroupedFfn> MakeGroupedFfnReference(
    const GroupedFfnOptions& options) {
  return std::make_unique<GroupedFfnReference>(options);
}

}  // namespace expertmesh::expert
