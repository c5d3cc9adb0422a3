#pragma once

// The alphabet of byte-level BPE: one printable character for each byte, so
// that a vocabulary can be written as text (GPT-2's bytes_to_unicode).

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace expertmesh::text {

// Appends the characters of `bytes` to `out`, in UTF-8.
void AppendByteAlphabet(absl::string_view bytes, std::string* out);

// The byte that `character` stands for, if it is one of the alphabet.
std::optional<uint8_t> ByteOfCharacter(char32_t character);

}  // namespace expertmesh::text
