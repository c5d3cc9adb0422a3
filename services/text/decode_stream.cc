// The state of TokenDecoder's stages over one text.

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "services/text/byte_alphabet.h"
#include "services/text/token_decoder.h"
#include "services/text/utf8.h"

namespace expertmesh::text {
namespace {

using Kind = DecodeStage::Kind;

// NN of a token <0xNN>.
std::optional<char> ByteToken(absl::string_view token) {
  if (token.size() != 6 || !absl::ConsumePrefix(&token, "<0x") ||
      !absl::ConsumeSuffix(&token, ">")) {
    return std::nullopt;
  }
  if (!absl::ascii_isxdigit(static_cast<unsigned char>(token[0])) ||
      !absl::ascii_isxdigit(static_cast<unsigned char>(token[1]))) {
    return std::nullopt;
  }
  return absl::HexStringToBytes(token)[0];
}

// The bytes of a token in the byte alphabet. A token with any other character,
// such as an added token, stands for itself.
std::string BytesOfToken(absl::string_view token) {
  std::string bytes;
  for (size_t offset = 0; offset < token.size();) {
    const auto byte = ByteOfCharacter(NextCharacter(token, &offset));
    if (!byte.has_value()) return std::string(token);
    bytes.push_back(static_cast<char>(*byte));
  }
  return bytes;
}

// Moves the characters at the front of `bytes` to the result, U+FFFD for what
// can be none. An unfinished character at the end stays.
std::string TakeCharacters(std::string* bytes) {
  std::string text;
  absl::string_view rest = *bytes;
  while (!rest.empty()) {
    size_t size;
    const Utf8Front front = ClassifyUtf8(rest, &size);
    if (front == Utf8Front::kIncomplete) break;
    absl::StrAppend(&text, front == Utf8Front::kCharacter
                               ? rest.substr(0, size)
                               : kReplacementCharacter);
    rest.remove_prefix(size);
  }
  bytes->erase(0, bytes->size() - rest.size());
  return text;
}

// Moves what is settled of `held` to the result: all but an end that may be
// the start of `literal`, which is replaced by `content`.
std::string TakeReplaced(absl::string_view literal, absl::string_view content,
                         std::string* held) {
  std::string text;
  absl::string_view rest = *held;
  size_t found;
  while ((found = rest.find(literal)) != absl::string_view::npos) {
    absl::StrAppend(&text, rest.substr(0, found), content);
    rest.remove_prefix(found + literal.size());
  }
  size_t keep = std::min(rest.size(), literal.size() - 1);
  while (!absl::EndsWith(rest, literal.substr(0, keep))) --keep;
  absl::StrAppend(&text, rest.substr(0, rest.size() - keep));
  held->erase(0, held->size() - keep);
  return text;
}

// Moves what is settled of `held` to the result: all but the literals at its
// end that a Strip would take away if the text ended here. `*stripped` counts
// those taken away in front; it is at `stage.start` once other text was seen.
std::string TakeStripped(const DecodeStage& stage, size_t* stripped,
                         std::string* held) {
  absl::string_view rest = *held;
  while (*stripped < stage.start && !rest.empty()) {
    if (absl::ConsumePrefix(&rest, stage.literal)) {
      ++*stripped;
    } else {
      *stripped = stage.start;
    }
  }
  absl::string_view text = rest;
  for (size_t i = 0; i < stage.stop; ++i) {
    if (!absl::ConsumeSuffix(&text, stage.literal)) break;
  }
  std::string settled(text);
  held->erase(0, held->size() - (rest.size() - text.size()));
  return settled;
}

}  // namespace

DecodeStream::DecodeStream(const TokenDecoder* decoder)
    : decoder_(decoder), states_(decoder->stages().size()) {}

void DecodeStream::Push(absl::string_view token) { Feed(0, token); }

void DecodeStream::Finish() {
  // In order: what an early stage lets go of, the later ones still take.
  for (size_t stage = 0; stage < states_.size(); ++stage) FinishStage(stage);
}

std::string DecodeStream::Take() { return std::exchange(settled_, {}); }

void DecodeStream::Feed(size_t index, absl::string_view token) {
  if (index == states_.size()) {
    absl::StrAppend(&settled_, token);
    return;
  }
  const DecodeStage& stage = decoder_->stages()[index];
  State& state = states_[index];
  switch (stage.kind) {
    case Kind::kFuse:
      return Feed(index + 1, token);
    case Kind::kJoin:
      if (state.count++ > 0) Feed(index + 1, stage.literal);
      return Feed(index + 1, token);
    case Kind::kMetaspace: {
      const bool drop = state.count++ == 0 && stage.start > 0;
      return Feed(index + 1, absl::StrReplaceAll(
                                 token, {{stage.literal, drop ? "" : " "}}));
    }
    case Kind::kByteFallback:
      return FeedByteFallback(index, token);
    case Kind::kByteLevel:
      absl::StrAppend(&state.held, BytesOfToken(token));
      return Feed(index + 1, TakeCharacters(&state.held));
    case Kind::kReplace:
      if (!stage.after_join) {
        return Feed(index + 1, absl::StrReplaceAll(
                                   token, {{stage.literal, stage.content}}));
      }
      absl::StrAppend(&state.held, token);
      return Feed(index + 1,
                  TakeReplaced(stage.literal, stage.content, &state.held));
    case Kind::kStrip:
      if (!stage.after_join) state = State();
      absl::StrAppend(&state.held, token);
      return Feed(index + 1, TakeStripped(stage, &state.count, &state.held));
  }
}

void DecodeStream::FinishStage(size_t index) {
  const DecodeStage& stage = decoder_->stages()[index];
  State& state = states_[index];
  if (stage.kind == Kind::kByteFallback) {
    EndByteRun(index);
  } else if (stage.kind == Kind::kByteLevel && !state.held.empty()) {
    Feed(index + 1, kReplacementCharacter);
  } else if (stage.kind == Kind::kReplace) {
    Feed(index + 1, state.held);
  }
  state = State();
}

void DecodeStream::FeedByteFallback(size_t index, absl::string_view token) {
  if (const auto byte = ByteToken(token)) {
    states_[index].held.push_back(*byte);
    return;
  }
  EndByteRun(index);
  Feed(index + 1, token);
}

void DecodeStream::EndByteRun(size_t index) {
  const std::string run = std::exchange(states_[index].held, {});
  if (run.empty()) return;
  if (FindInvalidUtf8(run) == absl::string_view::npos) {
    return Feed(index + 1, run);
  }
  // One for each byte of the run, even for those of whole characters.
  for (size_t i = 0; i < run.size(); ++i) {
    Feed(index + 1, kReplacementCharacter);
  }
}

}  // namespace expertmesh::text
