#include "expert_service/kernels/grouped_ffn_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "services/linalg/activation_row.h"

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

std::vector<float> ReadRow(const std::byte* row, DType dtype, int64_t n) {
  std::vector<float> x(n);
  for (int64_t i = 0; i < n; ++i) {
    if (dtype == DType::kInt8) {
      const CodedRow coded = ReadCodedRow(row);
      x[i] = coded.scale * static_cast<float>(coded.codes[i]);
    } else {
      x[i] = dtype == DType::kF32
                 ? reinterpret_cast<const float*>(row)[i]
                 : ToF32(reinterpret_cast<const BF16*>(row)[i]);
    }
  }
  return x;
}

void WriteRow(const std::vector<float>& y, DType dtype, std::byte* row) {
  float max = 0;
  for (const float value : y) max = std::max(max, std::abs(value));
  const float scale = max / 127.0f;
  if (dtype == DType::kInt8) std::memcpy(row, &scale, sizeof(scale));
  for (size_t i = 0; i < y.size(); ++i) {
    if (dtype == DType::kF32) {
      reinterpret_cast<float*>(row)[i] = y[i];
    } else if (dtype == DType::kBF16) {
      reinterpret_cast<BF16*>(row)[i] = ToBF16(y[i]);
    } else {
      reinterpret_cast<int8_t*>(row + sizeof(scale))[i] =
          max == 0 ? 0
                   : static_cast<int8_t>(std::nearbyint(y[i] * (127.0f / max)));
    }
  }
}

float RoundTo(DType dtype, float x) {
  return dtype == DType::kF32 ? x : ToF32(ToBF16(x));
}

// What activations of `dtype` are as they enter products.
DType ProductType(DType dtype, WeightFormat format) {
  if (dtype != DType::kInt8) return dtype;
  return format == WeightFormat::kBF16 ? DType::kBF16 : DType::kF32;
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

  absl::Status Start(const GroupedRows& rows) override {
    for (size_t g = 0; g < rows.experts.size(); ++g) {
      for (int64_t row = rows.group_offsets[g]; row < rows.group_offsets[g + 1];
           ++row) {
        RunRow(rows, static_cast<const PackedExpert&>(*rows.experts[g]), row);
      }
    }
    return absl::OkStatus();
  }

 private:
  void RunRow(const GroupedRows& rows, const PackedExpert& expert,
              int64_t row) const {
    const int64_t offset =
        row * static_cast<int64_t>(RowBytes(rows.dtype, options_.hidden_size));
    std::vector<float> x =
        ReadRow(static_cast<const std::byte*>(rows.x) + offset, rows.dtype,
                options_.hidden_size);
    const DType type = ProductType(rows.dtype, expert.gate_proj.format());
    for (float& value : x) value = RoundTo(type, value);
    std::vector<float> h(options_.intermediate_size);
    std::vector<float> y(options_.hidden_size);
    for (int64_t i = 0; i < options_.intermediate_size; ++i) {
      const float gate = Product(x, expert.gate_proj, i);
      const float up = Product(x, expert.up_proj, i);
      h[i] = gate / (1.0f + std::exp(-gate)) * up;
      if (!IsQuantized(expert.down_proj.format())) {
        h[i] = RoundTo(type, h[i]);
      }
    }
    for (int64_t i = 0; i < options_.hidden_size; ++i) {
      y[i] = Product(h, expert.down_proj, i);
    }
    WriteRow(y, rows.dtype, static_cast<std::byte*>(rows.y) + offset);
  }

  const GroupedFfnOptions options_;
};

}  // namespace

std::unique_ptr<GroupedFfn> MakeGroupedFfnReference(
    const GroupedFfnOptions& options) {
  return std::make_unique<GroupedFfnReference>(options);
}

}  // namespace expertmesh::expert
