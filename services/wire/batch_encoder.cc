// The sending half of batch_codec.h.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/wire/batch_codec.h"

namespace expertmesh {
namespace {

using expert::v1::ExpertBatch;
using expert::v1::ExpertResult;

// Arrays and activations are copied as they lie in memory.
static_assert(std::endian::native == std::endian::little);

// The fields are written twice by the same code: to measure, and to memory.
class SizeSink {
 public:
  void Byte(uint8_t) { ++size_; }
  void Bytes(const void*, size_t n) { size_ += n; }
  size_t size() const { return size_; }

 private:
  size_t size_ = 0;
};

class MemorySink {
 public:
  explicit MemorySink(uint8_t* out) : out_(out) {}
  void Byte(uint8_t byte) { *out_++ = byte; }
  void Bytes(const void* from, size_t n) {
    if (n > 0) std::memcpy(out_, from, n);
    out_ += n;
  }

 private:
  uint8_t* out_;
};

template <typename Sink>
void PutVarint(Sink& sink, uint64_t value) {
  for (; value >= 0x80; value >>= 7) {
    sink.Byte(static_cast<uint8_t>(value) | 0x80);
  }
  sink.Byte(static_cast<uint8_t>(value));
}

// As proto3 does, zero and empty are left out.
template <typename Sink>
void PutNumber(Sink& sink, uint32_t field, uint64_t value) {
  if (value == 0) return;
  PutVarint(sink, field << 3 | static_cast<uint32_t>(WireType::kVarint));
  PutVarint(sink, value);
}

template <typename Sink>
void PutLength(Sink& sink, uint32_t field, size_t size) {
  PutVarint(sink, field << 3 | static_cast<uint32_t>(WireType::kBytes));
  PutVarint(sink, size);
}

template <typename Sink>
void PutBytes(Sink& sink, uint32_t field, const void* data, size_t size) {
  if (size == 0) return;
  PutLength(sink, field, size);
  sink.Bytes(data, size);
}

template <typename Sink>
void PutArray(Sink& sink, uint32_t field, absl::Span<const uint32_t> values) {
  PutBytes(sink, field, values.data(), values.size() * sizeof(uint32_t));
}

template <typename Sink>
void PutArray(Sink& sink, uint32_t field, absl::Span<const float> values) {
  PutBytes(sink, field, values.data(), values.size() * sizeof(float));
}

uint32_t WireDataType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return expert::v1::DATA_TYPE_F32;
    case DType::kBF16:
      return expert::v1::DATA_TYPE_BF16;
    case DType::kInt8:
      return expert::v1::DATA_TYPE_INT8;
    case DType::kF16:
      break;  // refused before
  }
  return expert::v1::DATA_TYPE_UNSPECIFIED;
}

template <typename Sink>
void PutHeader(Sink& sink, const BatchFields& f) {
  PutNumber(sink, ExpertBatch::kSequenceNumberFieldNumber, f.sequence_number);
  PutNumber(sink, ExpertBatch::kLayerFieldNumber, f.layer);
  PutNumber(sink, ExpertBatch::kTimeoutMsFieldNumber, f.timeout_ms);
  PutNumber(sink, ExpertBatch::kDataTypeFieldNumber, WireDataType(f.dtype));
  PutNumber(sink, ExpertBatch::kHiddenSizeFieldNumber, f.hidden_size);
  PutNumber(sink, ExpertBatch::kNumTokensFieldNumber, f.num_tokens);
  PutArray(sink, ExpertBatch::kExpertIdsFieldNumber, f.expert_ids);
  PutArray(sink, ExpertBatch::kGroupOffsetsFieldNumber, f.group_offsets);
  PutArray(sink, ExpertBatch::kRowTokenFieldNumber, f.row_token);
  PutArray(sink, ExpertBatch::kRowWeightFieldNumber, f.row_weight);
  if (!f.traceparents.empty()) {
    PutBytes(sink, ExpertBatch::kTraceparentFieldNumber,
             f.traceparents[0].data(), f.traceparents[0].size());
  }
  PutArray(sink, ExpertBatch::kRowSumFieldNumber, f.row_sum);
  PutNumber(sink, ExpertBatch::kNumSumsFieldNumber, f.num_sums);
  const size_t num_traces = std::min(f.traceparents.size(), kMaxBatchTraces);
  for (size_t i = 1; i < num_traces; ++i) {
    PutBytes(sink, ExpertBatch::kFurtherTraceparentsFieldNumber,
             f.traceparents[i].data(), f.traceparents[i].size());
  }
}

template <typename Sink>
void PutHeader(Sink& sink, const ResultFields& f) {
  PutNumber(sink, ExpertResult::kSequenceNumberFieldNumber, f.sequence_number);
  PutNumber(sink, ExpertResult::kCodeFieldNumber, f.code);
  PutBytes(sink, ExpertResult::kMessageFieldNumber, f.message.data(),
           f.message.size());
  PutNumber(sink, ExpertResult::kDataTypeFieldNumber, WireDataType(f.dtype));
  PutNumber(sink, ExpertResult::kHiddenSizeFieldNumber, f.hidden_size);
  PutNumber(sink, ExpertResult::kNumRowsFieldNumber, f.num_rows);
  PutNumber(sink, ExpertResult::kQueueUsFieldNumber, f.queue_us);
  PutNumber(sink, ExpertResult::kComputeUsFieldNumber, f.compute_us);
  PutNumber(sink, ExpertResult::kCreditRowsFieldNumber, f.credit_rows);
  PutNumber(sink, ExpertResult::kNumSumsFieldNumber, f.num_sums);
}

// A field that is not copied: the first `size` bytes of `data`.
struct Payload {
  uint32_t field;
  PayloadRef data;
  size_t size = 0;
};

// Sets the size of [rows, hidden_size] of dtype.
absl::Status SetSize(uint64_t rows, uint64_t hidden_size, DType dtype,
                     Payload* payload) {
  if (dtype == DType::kF16) {
    return absl::InvalidArgumentError("f16 activations do not travel");
  }
  // Both factors are 32-bit numbers, which a row's bytes may exceed.
  const uint64_t row_bytes = RowBytes(dtype, hidden_size);
  if (rows > 0 && row_bytes > kMaxMessageBytes / rows) {
    return absl::InvalidArgumentError(
        absl::StrCat(rows, " x ", hidden_size, " activations exceed ",
                     kMaxMessageBytes, " bytes, the largest message"));
  }
  payload->size = rows * row_bytes;
  if (payload->data.size() < payload->size) {
    return absl::InvalidArgumentError(
        absl::StrCat("field ", payload->field, " has ", payload->data.size(),
                     " bytes, its shape ", payload->size));
  }
  return absl::OkStatus();
}

grpc::Slice AsSlice(Payload* payload) {
  std::byte* const data = payload->data.data();
  return grpc::Slice(
      data, payload->size, [](void* released) { PayloadRef::Adopt(released); },
      payload->data.Release());
}

// Writes the fields and those of the payloads that are not empty.
template <typename Fields>
absl::Status Encode(const Fields& fields, absl::Span<Payload> payloads,
                    grpc::ByteBuffer* out) {
  // Before each payload, a slice of what stands before it.
  constexpr size_t kMostPayloads = 2;
  std::array<grpc::Slice, 2 * kMostPayloads> slices;
  size_t num_slices = 0;
  size_t message_size = 0;
  const auto add = [&](const auto& put) {
    SizeSink measure;
    put(measure);
    message_size += measure.size();
    grpc::Slice& slice = slices[num_slices++] = grpc::Slice(measure.size());
    // Fresh and not shared yet, so writing to it is allowed.
    MemorySink memory(const_cast<uint8_t*>(slice.begin()));
    put(memory);
  };
  bool is_first = true;
  for (Payload& payload : payloads) {
    if (payload.size == 0) continue;
    add([&](auto& sink) {
      if (is_first) PutHeader(sink, fields);
      PutLength(sink, payload.field, payload.size);
    });
    is_first = false;
    message_size += payload.size;
    slices[num_slices++] = AsSlice(&payload);
  }
  if (is_first) add([&](auto& sink) { PutHeader(sink, fields); });
  if (message_size > kMaxMessageBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a message of ", message_size,
                     " bytes exceeds the largest, ", kMaxMessageBytes));
  }
  *out = grpc::ByteBuffer(slices.data(), num_slices);
  return absl::OkStatus();
}

}  // namespace

absl::Status EncodeBatch(const BatchFields& fields, PayloadRef hidden_states,
                         grpc::ByteBuffer* out) {
  Payload payload = {ExpertBatch::kHiddenStatesFieldNumber,
                     std::move(hidden_states)};
  RETURN_IF_ERROR(
      SetSize(fields.num_tokens, fields.hidden_size, fields.dtype, &payload));
  return Encode(fields, {&payload, 1}, out);
}

absl::Status EncodeResult(const ResultFields& fields, ResultPayloads payloads,
                          grpc::ByteBuffer* out) {
  std::array<Payload, 2> parts = {
      Payload{ExpertResult::kPartialSumsFieldNumber, std::move(payloads.sums)},
      Payload{ExpertResult::kHiddenStatesFieldNumber, std::move(payloads.rows)},
  };
  RETURN_IF_ERROR(
      SetSize(fields.num_sums, fields.hidden_size, DType::kF32, &parts[0]));
  RETURN_IF_ERROR(
      SetSize(fields.num_rows, fields.hidden_size, fields.dtype, &parts[1]));
  return Encode(fields, absl::MakeSpan(parts), out);
}

}  // namespace expertmesh
