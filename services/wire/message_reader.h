#pragma once

// Reads Protobuf's wire format straight from the slices of a received message,
// without joining them.

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace expertmesh {

// The bytes of one message, kept alive by references to gRPC's slices. Reused
// from message to message without allocating. Not thread-safe.
class MessageBytes {
 public:
  // Takes references to the slices of `buffer`. Errors: INTERNAL.
  absl::Status Reset(const grpc::ByteBuffer& buffer);
  // Lets go of the slices.
  void Clear();

  size_t size() const { return size_; }

  // Copies bytes [offset, offset + n) to `out`. Requires: they are inside.
  void Copy(size_t offset, size_t n, void* out) const;

 private:
  friend class FieldReader;
  // The slice that holds byte `offset`. Requires: offset < size().
  size_t SliceAt(size_t offset) const;

  std::vector<grpc::Slice> slices_;
  std::vector<size_t> starts_;  // offset of each slice's first byte
  size_t size_ = 0;
};

enum class WireType : uint32_t {
  kVarint = 0,
  kFixed64 = 1,
  kBytes = 2,
  kGroup = 3,
  kEndGroup = 4,
  kFixed32 = 5,
};

// A cursor over the fields of one message. The bytes may be hostile: every
// method reports truncated or impossible input as false and stays in bounds.
//   while (!reader.AtEnd()) {
//     if (!reader.ReadTag()) return malformed;
//     if (reader.Is(1, WireType::kVarint)) { ... } else { reader.Skip(); }
//   }
class FieldReader {
 public:
  // `bytes` must outlive the reader.
  explicit FieldReader(const MessageBytes& bytes) : bytes_(bytes) {}

  bool AtEnd() const { return position_ == bytes_.size(); }

  bool ReadTag();
  // True when the last tag named `field` as `type`. As in Protobuf, a known
  // field of another type is an unknown field.
  bool Is(uint32_t field, WireType type) const {
    return tag_ == (field << 3 | static_cast<uint32_t>(type));
  }
  // Skips the value of the last tag.
  bool Skip() { return SkipValue(tag_, 0); }

  bool ReadVarint(uint64_t* value);
  bool ReadVarint32(uint32_t* value);  // keeps the low 32 bits
  // The first `max` bytes of a text; the rest is skipped.
  bool ReadString(size_t max, std::string* value);
  // Finds a bytes field: its content is [*offset, *offset + *size).
  bool ReadBytes(size_t* offset, size_t* size);
  // Appends one element, or a packed run of them; uint32_t or float.
  template <typename T>
  bool ReadFixed32(std::vector<T>* values);
  template <typename T>
  bool ReadPackedFixed32(std::vector<T>* values);

 private:
  bool ReadByte(uint8_t* value);
  bool ReadLength(size_t* length);
  bool Advance(size_t n);
  bool SkipValue(uint32_t tag, int depth);
  bool ReadTagInto(uint32_t* tag);

  const MessageBytes& bytes_;
  size_t position_ = 0;
  size_t slice_ = 0;  // the slice of position_, or one before it
  uint32_t tag_ = 0;
};

}  // namespace expertmesh
