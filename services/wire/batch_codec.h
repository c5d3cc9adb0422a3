#pragma once

// ExpertBatch and ExpertResult to and from the bytes gRPC carries (stop 6).
//
// The bytes are ordinary messages of protos/expertmesh/expert/v1/expert.proto,
// and any valid encoding of one is read. By hand because the generated classes
// copy the payload twice: here sending copies none of it (it travels as a slice
// of its own), and receiving copies it once, from gRPC's unaligned slices into
// aligned memory.

#include <grpcpp/support/byte_buffer.h>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "expertmesh/expert/v1/expert.pb.h"
#include "services/core/dtype.h"
#include "services/wire/message_reader.h"
#include "services/wire/payload_pool.h"

namespace expertmesh {

// Largest message either end sends or takes; both set it as gRPC's limit.
constexpr size_t kMaxMessageBytes = size_t{256} << 20;

// Requests whose trace contexts a batch carries, at most.
constexpr size_t kMaxBatchTraces = 4;

// The fields of an ExpertBatch beside its payload; see expert.proto.
struct BatchFields {
  uint64_t sequence_number = 0;
  uint32_t layer = 0;
  uint32_t timeout_ms = 0;  // 0: no limit
  DType dtype = DType::kF32;
  uint32_t hidden_size = 0;
  uint32_t num_tokens = 0;
  absl::Span<const uint32_t> expert_ids = {};     // [num_groups]
  absl::Span<const uint32_t> group_offsets = {};  // [num_groups + 1]
  absl::Span<const uint32_t> row_token = {};      // [num_rows]
  // Empty without sums; else [num_rows].
  absl::Span<const float> row_weight = {};
  absl::Span<const uint32_t> row_sum = {};
  uint32_t num_sums = 0;
  // The first is the batch's; at most kMaxBatchTraces are sent.
  absl::Span<const std::string> traceparents = {};
};

// Writes one ExpertBatch to *out.
//   hidden_states  [num_tokens, hidden_size] of dtype, rows RowBytes apart; may
//                  be longer. Shared with gRPC, not copied: unchanged until its
//                  last reference is gone
// Errors: INVALID_ARGUMENT for a type that does not travel (f16), a payload
// shorter than its shape, or a message over kMaxMessageBytes.
absl::Status EncodeBatch(const BatchFields& fields, PayloadRef hidden_states,
                         grpc::ByteBuffer* out);

// A received ExpertBatch. Meant to be reused: its vectors keep their capacity,
// within reason. Movable. Const methods may be called from several threads at
// once.
class DecodedBatch {
 public:
  // Reads the fields and keeps references to the slices of `buffer`, which
  // itself may go. Checks the encoding only, so that the sequence number is
  // known when Validate refuses.
  // Errors: INVALID_ARGUMENT: these bytes are no ExpertBatch.
  absl::Status Decode(const grpc::ByteBuffer& buffer);

  // Checks everything that follows from the message alone: type, sizes,
  // expert ids strictly ascending, offsets, tokens and sums in range, weights
  // finite, no more rows in a group than tokens and no more sums than rows in
  // them, a result that fits a message. Whether the layer, the
  // experts and hidden_size are this service's is the caller's to check.
  // Errors: INVALID_ARGUMENT naming the field.
  absl::Status Validate();

  // Lets go of the received bytes, so that gRPC's memory is free again, and of
  // arrays and text beyond what a batch ever needs. Arrays may be empty then.
  void Release();
  // Bytes kept, beside the received ones.
  size_t capacity_bytes() const;

  uint64_t sequence_number() const { return sequence_number_; }
  uint32_t layer() const { return layer_; }
  uint32_t timeout_ms() const { return timeout_ms_; }
  uint32_t hidden_size() const { return hidden_size_; }
  uint32_t num_tokens() const { return num_tokens_; }
  const std::vector<uint32_t>& expert_ids() const { return expert_ids_; }
  const std::vector<uint32_t>& group_offsets() const { return group_offsets_; }
  const std::vector<uint32_t>& row_token() const { return row_token_; }
  const std::vector<float>& row_weight() const { return row_weight_; }
  const std::vector<uint32_t>& row_sum() const { return row_sum_; }
  uint32_t num_sums() const { return num_sums_; }
  const std::string& traceparent() const { return traceparent_; }
  // At most kMaxBatchTraces - 1; those that are too long for one are left out.
  absl::Span<const std::string> further_traceparents() const {
    return absl::MakeConstSpan(further_traceparents_)
        .first(num_further_traceparents_);
  }

  // The following require that Validate returned OK.
  DType dtype() const { return dtype_; }
  size_t num_rows() const { return row_token_.size(); }
  size_t row_bytes() const { return RowBytes(dtype_, hidden_size_); }
  // Rows that come back by themselves; known after Release as well.
  uint32_t num_lone_rows() const { return num_lone_rows_; }
  // Of the rows and sums that come back.
  size_t result_bytes() const {
    return num_lone_rows_ * row_bytes() +
           size_t{num_sums_} * hidden_size_ * sizeof(float);
  }

  // Gathers the activations of rows [first, last): row r is copied from token
  // row_token[r] to out + (r - first) * row_bytes(). The one copy of the
  // receiving side; needs the payload not to have been released.
  void CopyRows(size_t first, size_t last, std::byte* out) const;

 private:
  absl::Status ValidateGroups() const;
  // Counts the rows that come back by themselves.
  absl::Status ValidateSums();
  absl::Status ValidateSizes() const;
  bool ReadField(FieldReader& reader);
  bool ReadNumber(FieldReader& reader, bool* is_number);
  bool ReadArray(FieldReader& reader, bool* is_array);

  MessageBytes bytes_;
  uint64_t sequence_number_ = 0;
  uint32_t layer_ = 0;
  uint32_t timeout_ms_ = 0;
  uint32_t data_type_ = 0;
  uint32_t hidden_size_ = 0;
  uint32_t num_tokens_ = 0;
  std::vector<uint32_t> expert_ids_;
  std::vector<uint32_t> group_offsets_;
  std::vector<uint32_t> row_token_;
  std::vector<float> row_weight_;
  std::vector<uint32_t> row_sum_;
  uint32_t num_sums_ = 0;
  uint32_t num_lone_rows_ = 0;
  std::string traceparent_;
  // The first so many count; the others keep their memory.
  std::array<std::string, kMaxBatchTraces - 1> further_traceparents_;
  size_t num_further_traceparents_ = 0;
  size_t payload_offset_ = 0;
  size_t payload_size_ = 0;
  DType dtype_ = DType::kF32;
};

// The fields of an ExpertResult beside its payloads; see expert.proto. Other
// codes than CODE_OK carry no rows: set num_rows, num_sums and hidden_size to
// 0.
struct ResultFields {
  uint64_t sequence_number = 0;
  expert::v1::Code code = expert::v1::CODE_OK;
  absl::string_view message = {};
  DType dtype = DType::kF32;
  uint32_t hidden_size = 0;
  uint32_t num_rows = 0;
  uint32_t num_sums = 0;
  uint32_t queue_us = 0;
  uint32_t compute_us = 0;
  uint32_t credit_rows = 0;  // 0: as before
};

// What an ExpertResult carries.
struct ResultPayloads {
  PayloadRef rows;  // [num_rows, hidden_size] of dtype; empty without rows
  PayloadRef sums;  // [num_sums, hidden_size] f32; empty without sums
};

// Writes one ExpertResult to *out; as EncodeBatch.
absl::Status EncodeResult(const ResultFields& fields, ResultPayloads payloads,
                          grpc::ByteBuffer* out);

// What an ExpertResult must be to answer a batch.
struct ResultShape {
  uint32_t num_rows = 0;
  uint32_t num_sums = 0;
  uint32_t hidden_size = 0;
  DType dtype = DType::kF32;
};

// A received ExpertResult; as DecodedBatch.
class DecodedResult {
 public:
  // Errors: INVALID_ARGUMENT: these bytes are no ExpertResult.
  absl::Status Decode(const grpc::ByteBuffer& buffer);

  // Checks that this carries exactly [num_rows, hidden_size] of dtype and
  // [num_sums, hidden_size] of f32.
  // Errors: INVALID_ARGUMENT naming what differs.
  absl::Status CheckShape(const ResultShape& shape) const;

  uint64_t sequence_number() const { return sequence_number_; }
  expert::v1::Code code() const { return static_cast<expert::v1::Code>(code_); }
  const std::string& message() const { return message_; }
  uint32_t queue_us() const { return queue_us_; }
  uint32_t compute_us() const { return compute_us_; }
  // Rows the stream may have unanswered from now on; 0: as before.
  uint32_t credit_rows() const { return credit_rows_; }

  // Copies the rows to `out`: as many bytes as the shape checked above has.
  void CopyRows(std::byte* out) const { CopyBytes(0, rows_.size, out); }
  // Copies `size` bytes of the rows from `offset` on.
  // Requires: within the shape checked above.
  void CopyBytes(size_t offset, size_t size, std::byte* out) const {
    bytes_.Copy(rows_.offset + offset, size, out);
  }
  // Copies sum `index` [hidden_size] f32.
  // Requires: within the shape checked above.
  void CopySum(size_t index, std::byte* out) const {
    const size_t size = hidden_size_ * sizeof(float);
    bytes_.Copy(sums_.offset + index * size, size, out);
  }
  void ReleasePayload() { bytes_.Clear(); }

 private:
  // Where a payload lies in the message.
  struct Place {
    size_t offset = 0;
    size_t size = 0;
  };
  bool ReadField(FieldReader& reader);

  MessageBytes bytes_;
  uint64_t sequence_number_ = 0;
  uint32_t code_ = 0;
  std::string message_;
  uint32_t data_type_ = 0;
  uint32_t hidden_size_ = 0;
  uint32_t num_rows_ = 0;
  uint32_t num_sums_ = 0;
  uint32_t queue_us_ = 0;
  uint32_t compute_us_ = 0;
  uint32_t credit_rows_ = 0;
  Place rows_;
  Place sums_;
};

}  // namespace expertmesh
