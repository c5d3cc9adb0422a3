#include "services/linalg/kv_format.h"

#include "absl/strings/str_cat.h"

namespace expertmesh {

absl::string_view KvFormatName(KvFormat format) {
  switch (format) {
    case KvFormat::kF32:
      return "f32";
    case KvFormat::kBF16:
      return "bf16";
    case KvFormat::kInt8:
      return "int8";
  }
  return "?";
}

absl::StatusOr<KvFormat> ParseKvFormat(absl::string_view name) {
  for (const KvFormat format :
       {KvFormat::kF32, KvFormat::kBF16, KvFormat::kInt8}) {
    if (name == KvFormatName(format)) return format;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown type of keys and values '", name, "' (known: f32, bf16, int8)"));
}

}  // namespace expertmesh
