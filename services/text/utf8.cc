#include "services/text/utf8.h"

#include <cstdint>
#include <cstring>

namespace expertmesh::text {
namespace {

// Bytes that may follow a lead byte (Unicode standard, table 3-7).
struct LeadByte {
  size_t length;  // of the character; 0 for bytes that start none
  uint8_t second_min;
  uint8_t second_max;
};

LeadByte DescribeLead(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

size_t SkipAscii(absl::string_view text, size_t offset) {
  constexpr uint64_t kHighBits = 0x8080808080808080u;
  uint64_t word;
  while (offset + sizeof(word) <= text.size()) {
    std::memcpy(&word, text.data() + offset, sizeof(word));
    if ((word & kHighBits) != 0) break;
    offset += sizeof(word);
  }
  return offset;
}

}  // namespace

Utf8Front ClassifyUtf8(absl::string_view bytes, size_t* size) {
  const LeadByte lead = DescribeLead(static_cast<uint8_t>(bytes[0]));
  *size = 1;
  if (lead.length == 0) return Utf8Front::kInvalid;
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == bytes.size()) return Utf8Front::kIncomplete;
    const uint8_t byte = static_cast<uint8_t>(bytes[i]);
    const uint8_t min = i == 1 ? lead.second_min : 0x80;
    const uint8_t max = i == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) return Utf8Front::kInvalid;
    *size = i + 1;
  }
  return Utf8Front::kCharacter;
}

size_t FindInvalidUtf8(absl::string_view text) {
  size_t offset = 0;
  while ((offset = SkipAscii(text, offset)) < text.size()) {
    size_t size;
    if (ClassifyUtf8(text.substr(offset), &size) != Utf8Front::kCharacter) {
      return offset;
    }
    offset += size;
  }
  return absl::string_view::npos;
}

char32_t NextCharacter(absl::string_view text, size_t* offset) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data()) + *offset;
  const uint8_t lead = bytes[0];
  if (lead < 0x80) {
    *offset += 1;
    return lead;
  }
  const auto low_bits = [bytes](int i) { return char32_t{bytes[i]} & 0x3F; };
  if (lead < 0xE0) {
    *offset += 2;
    return (char32_t{lead} & 0x1F) << 6 | low_bits(1);
  }
  if (lead < 0xF0) {
    *offset += 3;
    return (char32_t{lead} & 0x0F) << 12 | low_bits(1) << 6 | low_bits(2);
  }
  *offset += 4;
  return (char32_t{lead} & 0x07) << 18 | low_bits(1) << 12 | low_bits(2) << 6 |
         low_bits(3);
}

size_t PreviousBoundary(absl::string_view text, size_t end) {
  size_t start = end - 1;
  while (start > 0 && (static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) {
    --start;
  }
  return start;
}

void AppendUtf8(char32_t character, std::string* out) {
  const auto push = [out](char32_t byte) {
    out->push_back(static_cast<char>(byte));
  };
  const auto push_low = [&push, character](int shift) {
    push(0x80 | ((character >> shift) & 0x3F));
  };
  if (character < 0x80) {
    push(character);
  } else if (character < 0x800) {
    push(0xC0 | character >> 6);
    push_low(0);
  } else if (character < 0x10000) {
    push(0xE0 | character >> 12);
    push_low(6);
    push_low(0);
  } else {
    push(0xF0 | character >> 18);
    push_low(12);
    push_low(6);
    push_low(0);
  }
}

}  // namespace expertmesh::text
