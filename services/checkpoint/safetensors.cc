#include "services/checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "services/checkpoint/json_reader.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

using nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

struct TypeBits {
  absl::string_view name;
  uint64_t bits;
};

// Every type of the format; only some are ever read.
constexpr std::array<TypeBits, 20> kTypes = {{
    {"F32", 32},    {"BF16", 16},   {"F16", 16}, {"F64", 64},    {"BOOL", 8},
    {"U8", 8},      {"I8", 8},      {"U16", 16}, {"I16", 16},    {"U32", 32},
    {"I32", 32},    {"U64", 64},    {"I64", 64}, {"C64", 64},    {"F8_E4M3", 8},
    {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6},
}};

std::optional<uint64_t> BitsOf(absl::string_view dtype) {
  for (const TypeBits& type : kTypes) {
    if (type.name == dtype) return type.bits;
  }
  return std::nullopt;
}

// Parses the entries of one header; holds what error lines name.
class HeaderParser {
 public:
  HeaderParser(absl::string_view file, uint64_t data_bytes)
      : file_(file), data_bytes_(data_bytes) {}

  absl::StatusOr<std::vector<TensorInfo>> Parse(const json& header) const;

 private:
  absl::StatusOr<TensorInfo> ParseTensor(const std::string& name,
                                         const json& entry) const;
  absl::Status ParseShape(const json& entry, TensorInfo& tensor) const;
  absl::Status ParseOffsets(const json& entry, TensorInfo& tensor) const;
  absl::Status CheckSize(const TensorInfo& tensor) const;
  absl::Status CheckCoverage(const std::vector<TensorInfo>& tensors) const;

  template <typename... Args>
  absl::Status Fault(const TensorInfo& tensor, const Args&... message) const {
    return absl::FailedPreconditionError(absl::StrCat(
        file_, ": tensor ", Quoted(tensor.name), ": ", message...));
  }

  absl::string_view file_;
  uint64_t data_bytes_;
};

absl::Status HeaderParser::ParseShape(const json& entry,
                                      TensorInfo& tensor) const {
  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array()) {
    return Fault(tensor, "has no shape");
  }
  for (const json& dim : *shape) {
    // A dimension is also bounded so that it fits int64.
    if (!dim.is_number_unsigned() || dim.get<uint64_t>() > INT64_MAX) {
      return Fault(tensor, "shape ", Shown(*shape),
                   " is not a list of whole numbers");
    }
    tensor.shape.push_back(dim.get<int64_t>());
  }
  return absl::OkStatus();
}

absl::Status HeaderParser::ParseOffsets(const json& entry,
                                        TensorInfo& tensor) const {
  const auto offsets = entry.find("data_offsets");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return Fault(tensor, "data_offsets must be two whole numbers");
  }
  tensor.begin = (*offsets)[0].get<uint64_t>();
  tensor.end = (*offsets)[1].get<uint64_t>();
  if (tensor.begin > tensor.end) {
    return Fault(tensor, "data_offsets ", offsets->dump(), " are reversed");
  }
  if (tensor.end > data_bytes_) {
    return Fault(tensor, "data_offsets ", offsets->dump(),
                 " lie beyond the end of the file (it holds ", data_bytes_,
                 " bytes of data; truncated?)");
  }
  return absl::OkStatus();
}

absl::Status HeaderParser::CheckSize(const TensorInfo& tensor) const {
  const std::optional<uint64_t> bits = BitsOf(tensor.dtype);
  if (!bits.has_value()) {
    return Fault(tensor, "unknown dtype ", Quoted(tensor.dtype));
  }
  uint64_t total_bits = *bits;
  for (const int64_t dim : tensor.shape) {
    if (__builtin_mul_overflow(total_bits, static_cast<uint64_t>(dim),
                               &total_bits)) {
      return Fault(tensor, "its shape is too large");
    }
  }
  const uint64_t stored = tensor.end - tensor.begin;
  if (total_bits % 8 != 0 || stored != total_bits / 8) {
    return Fault(tensor, "holds ", stored, " bytes, but dtype ", tensor.dtype,
                 " and shape need ", (total_bits + 7) / 8);
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorInfo> HeaderParser::ParseTensor(const std::string& name,
                                                     const json& entry) const {
  TensorInfo tensor;
  tensor.name = name;
  if (!entry.is_object()) return Fault(tensor, "must be a JSON object");
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) {
    return Fault(tensor, "has no dtype");
  }
  tensor.dtype = dtype->get<std::string>();
  RETURN_IF_ERROR(ParseShape(entry, tensor));
  RETURN_IF_ERROR(ParseOffsets(entry, tensor));
  RETURN_IF_ERROR(CheckSize(tensor));
  return tensor;
}

// `tensors` in ascending order of offsets.
absl::Status HeaderParser::CheckCoverage(
    const std::vector<TensorInfo>& tensors) const {
  uint64_t covered = 0;
  const TensorInfo* previous = nullptr;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin < covered) {
      return Fault(tensor, "overlaps tensor ", Quoted(previous->name));
    }
    if (tensor.begin > covered) {
      return Fault(tensor, "is preceded by ", tensor.begin - covered,
                   " bytes that belong to no tensor");
    }
    covered = tensor.end;
    previous = &tensor;
  }
  if (covered == data_bytes_) return absl::OkStatus();
  const std::string excess =
      absl::StrCat(data_bytes_ - covered, " bytes that belong to no tensor");
  if (previous != nullptr) {
    return Fault(*previous, "is followed by ", excess);
  }
  return absl::FailedPreconditionError(
      absl::StrCat(file_, ": ends with ", excess));
}

absl::StatusOr<std::vector<TensorInfo>> HeaderParser::Parse(
    const json& header) const {
  std::vector<TensorInfo> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(TensorInfo tensor, ParseTensor(name, entry));
    tensors.push_back(std::move(tensor));
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
            });
  RETURN_IF_ERROR(CheckCoverage(tensors));
  return tensors;
}

uint64_t LoadLittleEndian64(const std::byte* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) {
    value = value << 8 | std::to_integer<uint64_t>(bytes[i]);
  }
  return value;
}

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(
    absl::string_view file, absl::string_view json, uint64_t data_bytes) {
  if (json.empty() || json.front() != '{') {
    return absl::FailedPreconditionError(
        absl::StrCat(file, ": the safetensors header is not a JSON object"));
  }
  ASSIGN_OR_RETURN(const nlohmann::json header, ParseJsonObject(file, json));
  return HeaderParser(file, data_bytes).Parse(header);
}

SafetensorsFile::SafetensorsFile(std::string path, MappedFile mapping,
                                 uint64_t data_start,
                                 std::vector<TensorInfo> tensors)
    : path_(std::move(path)),
      mapping_(std::move(mapping)),
      data_start_(data_start),
      tensors_(std::move(tensors)) {
  for (size_t i = 0; i < tensors_.size(); ++i) index_[tensors_[i].name] = i;
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile mapping, MappedFile::Open(path));
  if (mapping.size() < kLengthBytes) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": ", mapping.size(),
                     " bytes are too few for a safetensors file (truncated?)"));
  }
  const uint64_t header_bytes = LoadLittleEndian64(mapping.data());
  const uint64_t rest = mapping.size() - kLengthBytes;
  if (header_bytes > rest) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": its header claims ", header_bytes,
                     " bytes, but only ", rest, " follow (truncated?)"));
  }
  if (header_bytes > kMaxHeaderBytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": its header claims ", header_bytes,
        " bytes, more than the format's limit of ", kMaxHeaderBytes));
  }
  const absl::string_view header(
      reinterpret_cast<const char*>(mapping.data()) + kLengthBytes,
      header_bytes);
  ASSIGN_OR_RETURN(std::vector<TensorInfo> tensors,
                   ParseSafetensorsHeader(path, header, rest - header_bytes));
  mapping.Release(mapping.data(), kLengthBytes + header_bytes);
  return SafetensorsFile(path, std::move(mapping), kLengthBytes + header_bytes,
                         std::move(tensors));
}

const TensorInfo* SafetensorsFile::Find(absl::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace expertmesh
