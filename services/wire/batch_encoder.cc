// The sending half of batch_codec.h.

#include <bit>
#include <cstring>
#include <limits>

#include "absl/status/statusor.h"
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

uint32_t WireDataType(DType dtype) {
  return dtype == DType::kF32 ? expert::v1::DATA_TYPE_F32
                              : expert::v1::DATA_TYPE_BF16;
}

template <typename Sink>
void PutHeader(Sink& sink, const BatchFields& f, size_t payload_size) {
  PutNumber(sink, ExpertBatch::kSequenceNumberFieldNumber, f.sequence_number);
  PutNumber(sink, ExpertBatch::kLayerFieldNumber, f.layer);
  PutNumber(sink, ExpertBatch::kTimeoutMsFieldNumber, f.timeout_ms);
  PutNumber(sink, ExpertBatch::kDataTypeFieldNumber, WireDataType(f.dtype));
  PutNumber(sink, ExpertBatch::kHiddenSizeFieldNumber, f.hidden_size);
  PutNumber(sink, ExpertBatch::kNumTokensFieldNumber, f.num_tokens);
  PutArray(sink, ExpertBatch::kExpertIdsFieldNumber, f.expert_ids);
  PutArray(sink, ExpertBatch::kGroupOffsetsFieldNumber, f.group_offsets);
  PutArray(sink, ExpertBatch::kRowTokenFieldNumber, f.row_token);
  PutBytes(sink, ExpertBatch::kTraceparentFieldNumber, f.traceparent.data(),
           f.traceparent.size());
  if (payload_size > 0) {
    PutLength(sink, ExpertBatch::kHiddenStatesFieldNumber, payload_size);
  }
}

template <typename Sink>
void PutHeader(Sink& sink, const ResultFields& f, size_t payload_size) {
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
  if (payload_size > 0) {
    PutLength(sink, ExpertResult::kHiddenStatesFieldNumber, payload_size);
  }
}

absl::StatusOr<size_t> PayloadSize(uint64_t rows, uint64_t hidden_size,
                                   DType dtype, const PayloadRef& payload) {
  if (dtype == DType::kF16) {
    return absl::InvalidArgumentError("f16 activations do not travel");
  }
  // Both factors are 32-bit numbers: only the element size can overflow.
  const uint64_t elements = rows * hidden_size;
  if (elements > kMaxMessageBytes / DTypeBytes(dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat(rows, " x ", hidden_size, " activations exceed ",
                     kMaxMessageBytes, " bytes, the largest message"));
  }
  const size_t size = elements * DTypeBytes(dtype);
  if (payload.size() < size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "hidden_states has ", payload.size(), " bytes, its shape ", size));
  }
  return size;
}

template <typename Fields>
absl::Status Encode(const Fields& fields, uint64_t rows, PayloadRef payload,
                    grpc::ByteBuffer* out) {
  ASSIGN_OR_RETURN(
      const size_t payload_size,
      PayloadSize(rows, fields.hidden_size, fields.dtype, payload));
  SizeSink measure;
  PutHeader(measure, fields, payload_size);
  if (measure.size() + payload_size > kMaxMessageBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a message of ", measure.size() + payload_size,
                     " bytes exceeds the largest, ", kMaxMessageBytes));
  }
  grpc::Slice slices[2] = {grpc::Slice(measure.size()), grpc::Slice()};
  // Fresh and not shared yet, so writing to it is allowed.
  MemorySink header(const_cast<uint8_t*>(slices[0].begin()));
  PutHeader(header, fields, payload_size);
  if (payload_size > 0) {
    std::byte* data = payload.data();
    slices[1] = grpc::Slice(
        data, payload_size, [](void* released) { PayloadRef::Adopt(released); },
        payload.Release());
  }
  *out = grpc::ByteBuffer(slices, payload_size > 0 ? 2 : 1);
  return absl::OkStatus();
}

}  // namespace

absl::Status EncodeBatch(const BatchFields& fields, PayloadRef hidden_states,
                         grpc::ByteBuffer* out) {
  return Encode(fields, fields.num_tokens, std::move(hidden_states), out);
}

absl::Status EncodeResult(const ResultFields& fields, PayloadRef hidden_states,
                          grpc::ByteBuffer* out) {
  return Encode(fields, fields.num_rows, std::move(hidden_states), out);
}

}  // namespace expertmesh
