#include "expert_service/kernels/grouped_ffn_reference.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace expertmesh::expert {
namespace {

// Weight [n, k] out of the packed layout that gemm.h describes.
float WeightAt(const PackedMatrix& w, int64_t n, int64_t k) {
  const std::byte* panel = w.panel(n / kPanelWidth);
  const int64_t column = n % kPanelWidth;
  if (w.format() == WeightFormat::kF32) {
    return reinterpret_cast<const float*>(panel)[k * kPanelWidth + column];
  }
  const uint16_t half = reinterpret_cast<const uint16_t*>(
      panel)[(k / 2 * kPanelWidth + column) * 2 + k % 2];
  return w.format() == WeightFormat::kBF16 ? ToF32(BF16{half}) : F16ToF32(half);
}

// A quantized weight in multiples of its output's scale.
int CodeAt(const PackedMatrix& w, int64_t n, int64_t k) {
  const auto* codes =
      reinterpret_cast<const uint8_t*>(w.panel(n / kPanelWidth)) +
      sizeof(QuantizedPanelHeader);
  const int64_t column = n % kPanelWidth;
  if (w.format() == WeightFormat::kInt8) {
    return static_cast<int8_t>(
        codes[(k / 4 * kPanelWidth + column) * 4 + k % 4]);
  }
  const uint8_t* block = codes + k / 64 * kInt4BlockBytes;
  const uint8_t pair =
      block[kInt4StepBytes + (k % 64 / 8 * kPanelWidth + column) * 4 + k % 4];
  const int code = k % 8 < 4 ? pair % 16 : pair / 16;
  const uint8_t step = block[k % 64 / kInt4Group * kPanelWidth + column];
  return (code - kInt4Zero + step / 16) * (step % 16);
}

// The activations in codes, the sum in integers.
float QuantizedProduct(const std::vector<float>& x, const PackedMatrix& w,
                       int64_t n) {
  float max = 0;
  for (const float value : x) max = std::max(max, std::abs(value));
  if (max == 0) return 0;
  const float inverse = 127.0f / max;
  int64_t sum = 0;
  for (int64_t k = 0; k < w.k(); ++k) {
    sum +=
        static_cast<int64_t>(std::nearbyint(x[k] * inverse)) * CodeAt(w, n, k);
  }
  const auto& header =
      *reinterpret_cast<const QuantizedPanelHeader*>(w.panel(n / kPanelWidth));
  return static_cast<float>(sum) * header.scales[n % kPanelWidth] *
         (max / 127.0f);
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
  if (IsQuantized(w.format())) return QuantizedProduct(x, w, n);
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
      h[i] = gate / (1.0f + std::exp(-gate)) * up;
      if (!IsQuantized(expert.down_proj.format())) {
        h[i] = RoundTo(rows.dtype, h[i]);
      }
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
