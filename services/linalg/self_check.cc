#include "services/linalg/self_check.h"

#include <cstring>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/linalg/isa/isa_choice.h"
#include "services/linalg/quantized_rows.h"

namespace expertmesh {
namespace {

// More than any kernel takes at once, and not a multiple of what it takes.
constexpr int64_t kRows = 71;

// The same rows in all their forms.
struct CheckedRows {
  explicit CheckedRows(int64_t k)
      : f32(kRows * k), bf16(kRows * k), codes(kRows, k), k(k) {
    std::minstd_rand generator;
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    for (float& value : f32) value = uniform(generator);
    ConvertToBF16(f32.data(), kRows * k, bf16.data());
    for (int64_t row = 0; row < kRows; ++row) {
      codes.Store(row, f32.data() + row * k);
    }
  }

  ActivationView From(DType dtype, int64_t row) const {
    const void* data = dtype == DType::kF32
                           ? static_cast<const void*>(f32.data() + row * k)
                           : bf16.data() + row * k;
    return {data, dtype, k, codes.view(row)};
  }

  std::vector<float> f32;
  std::vector<BF16> bf16;
  QuantizedRows codes;
  int64_t k;
};

// Of magnitudes in [0.5, 2), as f16 where that is the format: nothing else
// becomes f16.
std::vector<std::byte> RandomWeights(DType dtype, int64_t size) {
  std::minstd_rand generator;
  std::vector<std::byte> data(size * DTypeBytes(dtype));
  for (int64_t i = 0; i < size; ++i) {
    const auto draw = static_cast<uint32_t>(generator());
    if (dtype == DType::kF16) {
      const auto half = static_cast<uint16_t>((draw & 0x87ff) + (14 << 10));
      std::memcpy(&data[i * sizeof(half)], &half, sizeof(half));
    } else {
      const uint32_t bits =
          ((draw & 0x1000000) << 7 | (draw & 0xffffff)) + (126u << 23);
      std::memcpy(&data[i * sizeof(bits)], &bits, sizeof(bits));
    }
  }
  return data;
}

}  // namespace

absl::Status CheckRowsAgree(const PackedMatrix& w, DType dtype,
                            PanelProduct product) {
  if (w.num_panels() == 0) return absl::OkStatus();
  const CheckedRows rows(w.k());
  std::vector<float> together(kRows * kPanelWidth);
  std::vector<float> alone(kRows * kPanelWidth);
  for (const int64_t panel : {int64_t{0}, w.num_panels() - 1}) {
    product(rows.From(dtype, 0), kRows, w, panel, together.data(), kPanelWidth);
    for (int64_t row = 0; row < kRows; ++row) {
      product(rows.From(dtype, row), 1, w, panel, &alone[row * kPanelWidth],
              kPanelWidth);
    }
    if (std::memcmp(alone.data(), together.data(),
                    alone.size() * sizeof(float)) != 0) {
      return absl::InternalError(
          absl::StrCat("products with weights [", w.n(), ", ", w.k(), "] ",
                       WeightFormatName(w.format()), " by ", IsaName(),
                       " depend on the number of rows on this machine"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRowsAgree(const PackedMatrix& w, DType dtype) {
  return CheckRowsAgree(w, dtype, GemmPanel);
}

absl::Status CheckRowsAgree(WeightFormat format, int64_t n, int64_t k,
                            DType dtype) {
  const DType from = format == WeightFormat::kF16 ? DType::kF16 : DType::kF32;
  // A whole panel, and one as wide as the last.
  const int64_t last = (n - 1) % kPanelWidth + 1;
  const int64_t rows = n > last ? kPanelWidth + last : last;
  const std::vector<std::byte> weights = RandomWeights(from, rows * k);
  ASSIGN_OR_RETURN(
      const PackedMatrix packed,
      PackedMatrix::Pack(TensorView{weights.data(), from, {rows, k}}, format));
  return CheckRowsAgree(packed, dtype);
}

absl::Status UseIsaThatPasses(absl::Span<const Isa> candidates,
                              absl::FunctionRef<absl::Status()> check) {
  absl::Status failure;
  for (const Isa isa : candidates) {
    SetActiveIsa(isa);
    const absl::Status status = check();
    if (status.ok()) {
      if (!failure.ok()) {
        Log(LogLevel::kWarning, "kernels failed their check; using others",
            {{"failed", IsaNameOf(candidates.front())},
             {"using", IsaNameOf(isa)},
             {"error", failure.message()}});
      }
      return absl::OkStatus();
    }
    failure.Update(status);
  }
  SetActiveIsa(candidates.front());
  return absl::Status(
      failure.code(),
      absl::StrCat(failure.message(),
                   candidates.size() > 1
                       ? "; no other instruction set passes either"
                       : "; EXPERTMESH_ISA may name another instruction set"));
}

absl::Status UseIsaThatPasses(absl::FunctionRef<absl::Status()> check) {
  return UseIsaThatPasses(CandidateIsas(), check);
}

}  // namespace expertmesh
