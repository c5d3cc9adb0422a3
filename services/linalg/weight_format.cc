#include "services/linalg/weight_format.h"

#include "absl/strings/str_cat.h"
#include "services/linalg/isa/panel_layout.h"

namespace expertmesh {

absl::string_view WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return "f32";
    case WeightFormat::kBF16:
      return "bf16";
    case WeightFormat::kF16:
      return "f16";
    case WeightFormat::kInt8:
      return "int8";
    case WeightFormat::kInt4:
      return "int4";
  }
  return "?";
}

absl::StatusOr<WeightFormat> ParseWeightFormat(absl::string_view name) {
  for (const WeightFormat format :
       {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kF16,
        WeightFormat::kInt8, WeightFormat::kInt4}) {
    if (name == WeightFormatName(format)) return format;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown weight format '", name,
                   "' (known: f32, bf16, f16, int8, int4)"));
}

int64_t PackedBytes(int64_t n, int64_t k, WeightFormat format) {
  const int64_t panels = (n + kPanelWidth - 1) / kPanelWidth;
  switch (format) {
    case WeightFormat::kF32:
      return panels * k * kPanelWidth * static_cast<int64_t>(sizeof(float));
    case WeightFormat::kBF16:
    case WeightFormat::kF16:
      return panels * PaddedHalfK(k) * kPanelWidth *
             static_cast<int64_t>(sizeof(uint16_t));
    case WeightFormat::kInt8:
      return panels * Int8PanelBytes(k);
    case WeightFormat::kInt4:
      return panels * Int4PanelBytes(k);
  }
  return 0;
}

}  // namespace expertmesh
