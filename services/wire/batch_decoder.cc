// The receiving half of batch_codec.h.

#include <cmath>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/wire/batch_codec.h"
#include "services/wire/row_sum.h"

namespace expertmesh {
namespace {

constexpr size_t kMaxIdleBytes = size_t{16} << 20;

using expert::v1::ExpertBatch;
using expert::v1::ExpertResult;

// Of a result, beside its rows: more than its small fields ever take.
constexpr size_t kResultHeaderBytes = 4096;
// Kept for the next batch: the arrays of 16 Ki rows take 64 KiB.
constexpr size_t kMaxKeptBytes = size_t{1} << 20;
// A traceparent has 55 characters; later versions may have more.
constexpr size_t kMaxTraceparentBytes = 256;

std::optional<DType> FromWireDataType(uint32_t data_type) {
  switch (data_type) {
    case expert::v1::DATA_TYPE_F32:
      return DType::kF32;
    case expert::v1::DATA_TYPE_BF16:
      return DType::kBF16;
    case expert::v1::DATA_TYPE_INT8:
      return DType::kInt8;
    default:
      return std::nullopt;
  }
}

// Of a result: one sentence.
constexpr size_t kMaxMessageText = 4096;

// For products of two 32-bit numbers and an element size, which 64 bits do not
// hold.
using Wide = unsigned __int128;

bool IsPlainText(absl::string_view text) {
  for (const char c : text) {
    if (!absl::ascii_isprint(static_cast<unsigned char>(c))) return false;
  }
  return true;
}

}  // namespace

absl::Status DecodedBatch::Decode(const grpc::ByteBuffer& buffer) {
  RETURN_IF_ERROR(bytes_.Reset(buffer));
  sequence_number_ = 0;
  layer_ = timeout_ms_ = data_type_ = hidden_size_ = num_tokens_ = 0;
  num_sums_ = num_lone_rows_ = 0;
  expert_ids_.clear();
  group_offsets_.clear();
  row_token_.clear();
  row_weight_.clear();
  row_sum_.clear();
  traceparent_.clear();
  num_further_traceparents_ = 0;
  payload_offset_ = payload_size_ = 0;
  FieldReader reader(bytes_);
  while (!reader.AtEnd()) {
    if (!reader.ReadTag() || !ReadField(reader)) {
      bytes_.Clear();
      return absl::InvalidArgumentError("the bytes are not an ExpertBatch");
    }
  }
  return absl::OkStatus();
}

bool DecodedBatch::ReadField(FieldReader& reader) {
  using M = ExpertBatch;
  constexpr WireType kBytes = WireType::kBytes;
  constexpr WireType kFixed32 = WireType::kFixed32;
  if (reader.Is(M::kSequenceNumberFieldNumber, WireType::kVarint)) {
    return reader.ReadVarint(&sequence_number_);
  }
  const struct {
    uint32_t field;
    uint32_t* value;
  } numbers[] = {{M::kLayerFieldNumber, &layer_},
                 {M::kTimeoutMsFieldNumber, &timeout_ms_},
                 {M::kDataTypeFieldNumber, &data_type_},
                 {M::kHiddenSizeFieldNumber, &hidden_size_},
                 {M::kNumTokensFieldNumber, &num_tokens_},
                 {M::kNumSumsFieldNumber, &num_sums_}};
  for (const auto& number : numbers) {
    if (reader.Is(number.field, WireType::kVarint)) {
      return reader.ReadVarint32(number.value);
    }
  }
  const struct {
    uint32_t field;
    std::vector<uint32_t>* values;
  } arrays[] = {{M::kExpertIdsFieldNumber, &expert_ids_},
                {M::kGroupOffsetsFieldNumber, &group_offsets_},
                {M::kRowTokenFieldNumber, &row_token_},
                {M::kRowSumFieldNumber, &row_sum_}};
  for (const auto& array : arrays) {
    if (reader.Is(array.field, kBytes)) {
      return reader.ReadPackedFixed32(array.values);
    }
    if (reader.Is(array.field, kFixed32)) {
      return reader.ReadFixed32(array.values);
    }
  }
  if (reader.Is(M::kRowWeightFieldNumber, kBytes)) {
    return reader.ReadPackedFixed32(&row_weight_);
  }
  if (reader.Is(M::kRowWeightFieldNumber, kFixed32)) {
    return reader.ReadFixed32(&row_weight_);
  }
  if (reader.Is(M::kTraceparentFieldNumber, kBytes)) {
    // One more than allowed is enough to be refused.
    return reader.ReadString(kMaxTraceparentBytes + 1, &traceparent_);
  }
  if (reader.Is(M::kFurtherTraceparentsFieldNumber, kBytes) &&
      num_further_traceparents_ < further_traceparents_.size()) {
    std::string& text = further_traceparents_[num_further_traceparents_];
    if (!reader.ReadString(kMaxTraceparentBytes + 1, &text)) return false;
    if (text.size() <= kMaxTraceparentBytes) ++num_further_traceparents_;
    return true;
  }
  if (reader.Is(M::kHiddenStatesFieldNumber, kBytes)) {
    return reader.ReadBytes(&payload_offset_, &payload_size_);
  }
  return reader.Skip();
}

absl::Status DecodedBatch::Validate() {
  const std::optional<DType> dtype = FromWireDataType(data_type_);
  if (!dtype.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data_type ", data_type_, " is neither F32, BF16 nor INT8"));
  }
  dtype_ = *dtype;
  if (hidden_size_ == 0) {
    return absl::InvalidArgumentError("hidden_size is 0");
  }
  RETURN_IF_ERROR(ValidateSums());
  RETURN_IF_ERROR(ValidateSizes());
  if (traceparent_.size() > kMaxTraceparentBytes ||
      !IsPlainText(traceparent_)) {
    return absl::InvalidArgumentError("traceparent is not a trace context");
  }
  return ValidateGroups();
}

absl::Status DecodedBatch::ValidateSums() {
  num_lone_rows_ = static_cast<uint32_t>(num_rows());
  if (num_sums_ == 0 && row_sum_.empty() && row_weight_.empty()) {
    return absl::OkStatus();
  }
  if (row_sum_.size() != num_rows() || row_weight_.size() != num_rows()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "row_sum and row_weight have ", row_sum_.size(), " and ",
        row_weight_.size(), " elements for ", num_rows(), " rows"));
  }
  for (size_t r = 0; r < row_sum_.size(); ++r) {
    if (row_sum_[r] == kNoSum) continue;
    --num_lone_rows_;
    if (row_sum_[r] >= num_sums_) {
      return absl::InvalidArgumentError(
          absl::StrCat("row_sum[", r, "] is ", row_sum_[r],
                       ", but num_sums is ", num_sums_));
    }
    if (!std::isfinite(row_weight_[r])) {
      return absl::InvalidArgumentError(
          absl::StrCat("row_weight[", r, "] is not finite"));
    }
  }
  if (num_sums_ > num_rows() - num_lone_rows_) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_sums is ", num_sums_, ", but only ",
                     num_rows() - num_lone_rows_, " rows go into sums"));
  }
  return absl::OkStatus();
}

absl::Status DecodedBatch::ValidateSizes() const {
  const Wide row_bytes = RowBytes(dtype_, hidden_size_);
  if (num_tokens_ * row_bytes != payload_size_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "hidden_states has ", payload_size_, " bytes, but num_tokens is ",
        num_tokens_, " and hidden_size ", hidden_size_, ": a row of ",
        DTypeName(dtype_), " takes ", RowBytes(dtype_, hidden_size_)));
  }
  // Tokens without rows are harmless, but not as a way around the queue's bound
  // on rows.
  if (num_tokens_ > row_token_.size() && payload_size_ > kMaxIdleBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_tokens is ", num_tokens_, ", but there are only ",
                     row_token_.size(), " rows: send only tokens with rows"));
  }
  const Wide result_bytes = num_lone_rows_ * row_bytes +
                            Wide{num_sums_} * hidden_size_ * sizeof(float);
  if (result_bytes + kResultHeaderBytes > kMaxMessageBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the result of ", row_token_.size(), " rows would exceed ",
                     kMaxMessageBytes, " bytes: send the rows in parts"));
  }
  return absl::OkStatus();
}

absl::Status DecodedBatch::ValidateGroups() const {
  if (group_offsets_.size() != expert_ids_.size() + 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "group_offsets has ", group_offsets_.size(), " elements for ",
        expert_ids_.size(), " expert_ids: one more than those is needed"));
  }
  if (group_offsets_.front() != 0 ||
      group_offsets_.back() != row_token_.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "group_offsets goes from ", group_offsets_.front(), " to ",
        group_offsets_.back(), " instead of from 0 to the number of rows, ",
        row_token_.size()));
  }
  for (size_t g = 0; g < expert_ids_.size(); ++g) {
    if (g > 0 && expert_ids_[g] <= expert_ids_[g - 1]) {
      return absl::InvalidArgumentError(
          absl::StrCat("expert_ids[", g, "] is not above the one before it"));
    }
    if (group_offsets_[g + 1] < group_offsets_[g]) {
      return absl::InvalidArgumentError(absl::StrCat(
          "group_offsets[", g + 1, "] is below the one before it"));
    }
    if (group_offsets_[g + 1] - group_offsets_[g] > num_tokens_) {
      return absl::InvalidArgumentError(absl::StrCat("expert ", expert_ids_[g],
                                                     " has more rows than the ",
                                                     num_tokens_, " tokens"));
    }
  }
  for (size_t r = 0; r < row_token_.size(); ++r) {
    if (row_token_[r] >= num_tokens_) {
      return absl::InvalidArgumentError(
          absl::StrCat("row_token[", r, "] is ", row_token_[r],
                       ", but num_tokens is ", num_tokens_));
    }
  }
  return absl::OkStatus();
}

void DecodedBatch::Release() {
  bytes_.Clear();
  if (capacity_bytes() > kMaxKeptBytes) {
    for (auto* array :
         {&expert_ids_, &group_offsets_, &row_token_, &row_sum_}) {
      std::vector<uint32_t>().swap(*array);
    }
    std::vector<float>().swap(row_weight_);
  }
}

size_t DecodedBatch::capacity_bytes() const {
  return (expert_ids_.capacity() + group_offsets_.capacity() +
          row_token_.capacity() + row_sum_.capacity() +
          row_weight_.capacity()) *
         sizeof(uint32_t);
}

void DecodedBatch::CopyRows(size_t first, size_t last, std::byte* out) const {
  const size_t stride = row_bytes();
  for (size_t r = first; r < last; ++r, out += stride) {
    bytes_.Copy(payload_offset_ + row_token_[r] * stride, stride, out);
  }
}

absl::Status DecodedResult::Decode(const grpc::ByteBuffer& buffer) {
  RETURN_IF_ERROR(bytes_.Reset(buffer));
  sequence_number_ = 0;
  code_ = data_type_ = hidden_size_ = num_rows_ = num_sums_ = 0;
  queue_us_ = compute_us_ = credit_rows_ = 0;
  message_.clear();
  rows_ = sums_ = Place();
  FieldReader reader(bytes_);
  while (!reader.AtEnd()) {
    if (!reader.ReadTag() || !ReadField(reader)) {
      bytes_.Clear();
      return absl::InvalidArgumentError("the bytes are not an ExpertResult");
    }
  }
  return absl::OkStatus();
}

bool DecodedResult::ReadField(FieldReader& reader) {
  using M = ExpertResult;
  if (reader.Is(M::kSequenceNumberFieldNumber, WireType::kVarint)) {
    return reader.ReadVarint(&sequence_number_);
  }
  const struct {
    uint32_t field;
    uint32_t* value;
  } numbers[] = {{M::kCodeFieldNumber, &code_},
                 {M::kDataTypeFieldNumber, &data_type_},
                 {M::kHiddenSizeFieldNumber, &hidden_size_},
                 {M::kNumRowsFieldNumber, &num_rows_},
                 {M::kNumSumsFieldNumber, &num_sums_},
                 {M::kQueueUsFieldNumber, &queue_us_},
                 {M::kComputeUsFieldNumber, &compute_us_},
                 {M::kCreditRowsFieldNumber, &credit_rows_}};
  for (const auto& number : numbers) {
    if (reader.Is(number.field, WireType::kVarint)) {
      return reader.ReadVarint32(number.value);
    }
  }
  if (reader.Is(M::kMessageFieldNumber, WireType::kBytes)) {
    return reader.ReadString(kMaxMessageText, &message_);
  }
  if (reader.Is(M::kHiddenStatesFieldNumber, WireType::kBytes)) {
    return reader.ReadBytes(&rows_.offset, &rows_.size);
  }
  if (reader.Is(M::kPartialSumsFieldNumber, WireType::kBytes)) {
    return reader.ReadBytes(&sums_.offset, &sums_.size);
  }
  return reader.Skip();
}

absl::Status DecodedResult::CheckShape(const ResultShape& shape) const {
  if (num_rows_ != shape.num_rows || num_sums_ != shape.num_sums ||
      hidden_size_ != shape.hidden_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("the result is ", num_rows_, " rows and ", num_sums_,
                     " sums x ", hidden_size_, " instead of ", shape.num_rows,
                     " and ", shape.num_sums, " x ", shape.hidden_size));
  }
  if (FromWireDataType(data_type_) != shape.dtype) {
    return absl::InvalidArgumentError(absl::StrCat("the result has data_type ",
                                                   data_type_, " instead of ",
                                                   DTypeName(shape.dtype)));
  }
  const Wide row_bytes = RowBytes(shape.dtype, hidden_size_);
  const Wide sum_bytes = Wide{hidden_size_} * sizeof(float);
  if (num_rows_ * row_bytes != rows_.size ||
      num_sums_ * sum_bytes != sums_.size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the result has ", rows_.size, " and ", sums_.size, " bytes for ",
        num_rows_, " rows and ", num_sums_, " sums x ", hidden_size_));
  }
  return absl::OkStatus();
}

}  // namespace expertmesh
