#include "services/text/byte_alphabet.h"

#include <array>

#include "services/text/utf8.h"

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
  for (char byte : bytes) {
    AppendUtf8(kAlphabet.character[static_cast<uint8_t>(byte)], out);
  }
}

std::optional<uint8_t> ByteOfCharacter(char32_t character) {
  if (character >= kAlphabetEnd || kAlphabet.byte[character] < 0) {
    return std::nullopt;
  }
  return static_cast<uint8_t>(kAlphabet.byte[character]);
}

}  // namespace expertmesh::text
