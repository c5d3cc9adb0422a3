#include "services/text/byte_alphabet.h"

#include <array>
#include <cstddef>

namespace expertmesh::text {
namespace {

// Bytes that are printable in Latin-1 stand for themselves; the others take
// the characters from U+0100 on, in order.
constexpr bool StandsForItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
         byte >= 0xAE;
}

constexpr int kFirstShifted = 0x100;
constexpr int kAlphabetEnd = 0x144;  // 68 bytes are shifted

struct Alphabet {
  std::array<char16_t, 256> character{};
  std::array<int16_t, kAlphabetEnd> byte{};  // -1: not of the alphabet
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  alphabet.byte.fill(-1);
  int next = kFirstShifted;
  for (int byte = 0; byte < 256; ++byte) {
    const int character = StandsForItself(byte) ? byte : next++;
    alphabet.character[byte] = static_cast<char16_t>(character);
    alphabet.byte[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();
static_assert(kAlphabet.character[' '] == 0x120);
static_assert(kAlphabet.character[0xAD] == kAlphabetEnd - 1);

}  // namespace

void AppendByteAlphabet(absl::string_view bytes, std::string* out) {
  size_t end = out->size();
  // All characters of the alphabet are below U+0800: two bytes at most.
  out->resize(end + 2 * bytes.size());
  for (char byte : bytes) {
    const char16_t character = kAlphabet.character[static_cast<uint8_t>(byte)];
    if (character < 0x80) {
      (*out)[end++] = static_cast<char>(character);
    } else {
      (*out)[end++] = static_cast<char>(0xC0 | character >> 6);
      (*out)[end++] = static_cast<char>(0x80 | (character & 0x3F));
    }
  }
  out->resize(end);
}

std::optional<uint8_t> ByteOfCharacter(char32_t character) {
  if (character >= kAlphabetEnd || kAlphabet.byte[character] < 0) {
    return std::nullopt;
  }
  return static_cast<uint8_t>(kAlphabet.byte[character]);
}

}  // namespace expertmesh::text
