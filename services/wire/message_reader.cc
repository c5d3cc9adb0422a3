#include "services/wire/message_reader.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "services/wire/status_codec.h"

namespace expertmesh {
namespace {

// Arrays and activations are copied as they lie in memory.
static_assert(std::endian::native == std::endian::little);

// As deep as Protobuf's own parsers go.
constexpr int kMaxGroupDepth = 100;
// Of tags and lengths, 32-bit numbers, and of any number.
constexpr int kMaxTagBytes = 5;
constexpr size_t kMaxLengthBytes = 5;
constexpr int kMaxVarintBytes = 10;

}  // namespace

absl::Status MessageBytes::Reset(const grpc::ByteBuffer& buffer) {
  starts_.clear();
  size_ = 0;
  if (!buffer.Valid()) {
    slices_.clear();
    return absl::InternalError("the message has no buffer");
  }
  if (const grpc::Status status = buffer.Dump(&slices_); !status.ok()) {
    return FromGrpcStatus(status);
  }
  for (const grpc::Slice& slice : slices_) {
    starts_.push_back(size_);
    size_ += slice.size();
  }
  return absl::OkStatus();
}

void MessageBytes::Clear() {
  slices_.clear();
  starts_.clear();
  size_ = 0;
}

size_t MessageBytes::SliceAt(size_t offset) const {
  return std::upper_bound(starts_.begin(), starts_.end(), offset) -
         starts_.begin() - 1;
}

void MessageBytes::Copy(size_t offset, size_t n, void* out) const {
  if (n == 0) return;
  auto* to = static_cast<std::byte*>(out);
  for (size_t s = SliceAt(offset); n > 0; ++s) {
    const size_t skip = offset - starts_[s];
    const size_t here = std::min(n, slices_[s].size() - skip);
    std::memcpy(to, slices_[s].begin() + skip, here);
    to += here;
    offset += here;
    n -= here;
  }
}

bool FieldReader::ReadByte(uint8_t* value) {
  if (AtEnd()) return false;
  while (position_ - bytes_.starts_[slice_] >= bytes_.slices_[slice_].size()) {
    ++slice_;
  }
  *value = bytes_.slices_[slice_].begin()[position_ - bytes_.starts_[slice_]];
  ++position_;
  return true;
}

bool FieldReader::Advance(size_t n) {
  if (n > bytes_.size() - position_) return false;
  position_ += n;
  if (!AtEnd()) slice_ = bytes_.SliceAt(position_);
  return true;
}

bool FieldReader::ReadTagInto(uint32_t* tag) {
  *tag = 0;
  for (int i = 0; i < kMaxTagBytes; ++i) {
    uint8_t byte;
    if (!ReadByte(&byte)) return false;
    *tag |= static_cast<uint32_t>(byte & 0x7f) << (7 * i);
    if (byte < 0x80) return *tag >> 3 != 0;
  }
  return false;
}

bool FieldReader::ReadTag() { return ReadTagInto(&tag_); }

bool FieldReader::ReadVarint(uint64_t* value) {
  *value = 0;
  for (int i = 0; i < kMaxVarintBytes; ++i) {
    uint8_t byte;
    if (!ReadByte(&byte)) return false;
    *value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
    if (byte < 0x80) return true;
  }
  return false;
}

bool FieldReader::ReadVarint32(uint32_t* value) {
  uint64_t wide;
  if (!ReadVarint(&wide)) return false;
  *value = static_cast<uint32_t>(wide);
  return true;
}

bool FieldReader::ReadLength(size_t* length) {
  const size_t start = position_;
  uint64_t wide;
  if (!ReadVarint(&wide) || position_ - start > kMaxLengthBytes ||
      wide > bytes_.size() - position_) {
    return false;
  }
  *length = static_cast<size_t>(wide);
  return true;
}

bool FieldReader::ReadBytes(size_t* offset, size_t* size) {
  if (!ReadLength(size)) return false;
  *offset = position_;
  return Advance(*size);
}

bool FieldReader::ReadString(size_t max, std::string* value) {
  size_t offset, size;
  if (!ReadBytes(&offset, &size)) return false;
  size = std::min(size, max);
  value->resize(size);
  bytes_.Copy(offset, size, value->data());
  return true;
}

template <typename T>
bool FieldReader::ReadFixed32(std::vector<T>* values) {
  static_assert(sizeof(T) == sizeof(uint32_t));
  const size_t offset = position_;
  if (!Advance(sizeof(T))) return false;
  T value;
  bytes_.Copy(offset, sizeof(value), &value);
  values->push_back(value);
  return true;
}

template <typename T>
bool FieldReader::ReadPackedFixed32(std::vector<T>* values) {
  static_assert(sizeof(T) == sizeof(uint32_t));
  size_t offset, size;
  if (!ReadBytes(&offset, &size) || size % sizeof(T) != 0) return false;
  const size_t before = values->size();
  values->resize(before + size / sizeof(T));
  bytes_.Copy(offset, size, values->data() + before);
  return true;
}

template bool FieldReader::ReadFixed32(std::vector<uint32_t>*);
template bool FieldReader::ReadFixed32(std::vector<float>*);
template bool FieldReader::ReadPackedFixed32(std::vector<uint32_t>*);
template bool FieldReader::ReadPackedFixed32(std::vector<float>*);

bool FieldReader::SkipValue(uint32_t tag, int depth) {
  switch (static_cast<WireType>(tag & 7)) {
    case WireType::kVarint: {
      uint64_t ignored;
      return ReadVarint(&ignored);
    }
    case WireType::kFixed64:
      return Advance(8);
    case WireType::kFixed32:
      return Advance(4);
    case WireType::kBytes: {
      size_t length;
      return ReadLength(&length) && Advance(length);
    }
    case WireType::kGroup: {
      if (depth >= kMaxGroupDepth) return false;
      const uint32_t end =
          (tag & ~7u) | static_cast<uint32_t>(WireType::kEndGroup);
      for (uint32_t inner; ReadTagInto(&inner);) {
        if (inner == end) return true;
        if (!SkipValue(inner, depth + 1)) return false;
      }
      return false;
    }
    case WireType::kEndGroup:
      break;
  }
  return false;
}

}  // namespace expertmesh
