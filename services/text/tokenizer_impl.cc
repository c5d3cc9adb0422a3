#include "services/text/tokenizer_impl.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/text/utf8.h"

namespace expertmesh {
namespace {

// Indices of characters are 32 bits wide, and a byte may become a character
// of two.
constexpr size_t kMaxTextBytes = size_t{1} << 30;

// Cutting and padding are for batches of training; a server does neither.
void WarnOfBatching(const text::ConfigNode& root) {
  for (const char* option : {"truncation", "padding"}) {
    if (!root.Has(option)) continue;
    Log(LogLevel::kWarning, "option of tokenizer.json has no effect",
        {{"option", option}});
  }
}

absl::Status CheckRoot(const text::ConfigNode& root) {
  RETURN_IF_ERROR(root.AllowKeys({"version", "truncation", "padding",
                                  "added_tokens", "normalizer", "pre_tokenizer",
                                  "post_processor", "decoder", "model"}));
  if (!root.Has("version")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string version, root.GetString("version"));
  if (version == "1.0") return absl::OkStatus();
  return root.Error(absl::StrCat("version ", version, " is not supported"));
}

}  // namespace

Tokenizer::Impl::Impl(text::Normalizer normalizer,
                      text::PreTokenizer pre_tokenizer,
                      std::unique_ptr<text::BpeModel> model,
                      text::AddedTokens added_tokens,
                      text::PostProcessor post_processor,
                      text::TokenDecoder decoder)
    : normalizer_(std::move(normalizer)),
      pre_tokenizer_(std::move(pre_tokenizer)),
      model_(std::move(model)),
      added_tokens_(std::move(added_tokens)),
      post_processor_(std::move(post_processor)),
      decoder_(std::move(decoder)) {}

absl::StatusOr<std::unique_ptr<Tokenizer::Impl>> Tokenizer::Impl::Build(
    const text::ConfigNode& root) {
  RETURN_IF_ERROR(CheckRoot(root));
  ASSIGN_OR_RETURN(auto normalizer, text::Normalizer::Build(root));
  ASSIGN_OR_RETURN(auto pre_tokenizer, text::PreTokenizer::Build(root));
  ASSIGN_OR_RETURN(auto model, text::BpeModel::Build(root));
  ASSIGN_OR_RETURN(auto added_tokens,
                   text::AddedTokens::Build(root, *model, normalizer));
  ASSIGN_OR_RETURN(auto post_processor, text::PostProcessor::Build(root));
  ASSIGN_OR_RETURN(auto decoder, text::TokenDecoder::Build(root));
  std::unique_ptr<Impl> impl(new Impl(
      std::move(normalizer), std::move(pre_tokenizer), std::move(model),
      std::move(added_tokens), std::move(post_processor), std::move(decoder)));
  RETURN_IF_ERROR(impl->FillTokenTable());
  WarnOfBatching(root);
  return impl;
}

absl::Status Tokenizer::Impl::FillTokenTable() {
  for (const auto& [token, id] : model_->vocab()) {
    RETURN_IF_ERROR(AddToTable(id, token));
  }
  for (const text::AddedToken& token : added_tokens_.tokens()) {
    RETURN_IF_ERROR(AddToTable(token.id, token.decoded));
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::AddToTable(int32_t id, const std::string& token) {
  if (id >= vocab_size()) tokens_.resize(static_cast<size_t>(id) + 1);
  DecodableEntry& entry = tokens_[static_cast<size_t>(id)];
  entry.exists = true;
  entry.special = added_tokens_.IsSpecial(token);
  entry.text = token;
  return decoder_.Prepare(&entry.text);
}

std::optional<int32_t> Tokenizer::Impl::TokenId(absl::string_view token) const {
  if (const text::AddedToken* added = added_tokens_.Find(token)) {
    return added->id;
  }
  return model_->TokenId(token);
}

const std::string* Tokenizer::Impl::DecodableToken(int32_t id,
                                                   bool skip_special) const {
  if (id < 0 || id >= vocab_size()) return nullptr;
  const DecodableEntry& entry = tokens_[static_cast<size_t>(id)];
  if (!entry.exists || (skip_special && entry.special)) return nullptr;
  return &entry.text;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Impl::Encode(
    absl::string_view text, bool add_special_tokens) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "text of ", text.size(), " bytes; the most is ", kMaxTextBytes));
  }
  if (const size_t bad = text::FindInvalidUtf8(text);
      bad != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("text is not UTF-8 at byte ", bad));
  }
  std::vector<int32_t> ids;
  for (const text::TextSegment& segment : added_tokens_.FindRaw(text)) {
    const auto [begin, end] = segment.range;
    if (segment.id.has_value()) {
      ids.push_back(*segment.id);
    } else {
      RETURN_IF_ERROR(
          EncodeSegment(text.substr(begin, end - begin), begin == 0, &ids));
    }
  }
  return post_processor_.Apply(ids, add_special_tokens);
}

absl::Status Tokenizer::Impl::EncodeSegment(absl::string_view text,
                                            bool starts_text,
                                            std::vector<int32_t>* ids) const {
  std::string normalized(text);
  RETURN_IF_ERROR(normalizer_.Apply(&normalized));
  for (const text::TextSegment& segment :
       added_tokens_.FindNormalized(normalized)) {
    const auto [begin, end] = segment.range;
    if (segment.id.has_value()) {
      ids->push_back(*segment.id);
    } else {
      RETURN_IF_ERROR(
          EncodePieces(absl::string_view(normalized).substr(begin, end - begin),
                       starts_text && begin == 0, ids));
    }
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::EncodePieces(absl::string_view text,
                                           bool starts_text,
                                           std::vector<int32_t>* ids) const {
  text::PieceList list(std::string(text), starts_text);
  RETURN_IF_ERROR(pre_tokenizer_.Apply(&list));
  for (const text::PieceList::Piece& piece : list.pieces) {
    model_->Encode(list.View(piece), ids);
  }
  return absl::OkStatus();
}

}  // namespace expertmesh
