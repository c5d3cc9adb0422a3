#pragma once

// What a Tokenizer consists of.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/text/added_tokens.h"
#include "services/text/bpe_model.h"
#include "services/text/config_node.h"
#include "services/text/normalizer.h"
#include "services/text/post_processor.h"
#include "services/text/pre_tokenizer.h"
#include "services/text/token_decoder.h"
#include "services/text/tokenizer.h"

namespace expertmesh {

// Immutable but for the model's cache; thread-safe.
class Tokenizer::Impl {
 public:
  // `root` is the document. Errors: FAILED_PRECONDITION naming the place.
  static absl::StatusOr<std::unique_ptr<Impl>> Build(
      const text::ConfigNode& root);

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              bool add_special_tokens) const;
  std::optional<int32_t> TokenId(absl::string_view token) const;

  // What `id` gives to a DecodeStream, or null if it is no token or a special
  // one to be skipped.
  const std::string* DecodableToken(int32_t id, bool skip_special) const;

  const text::TokenDecoder& decoder() const { return decoder_; }
  int32_t vocab_size() const { return static_cast<int32_t>(tokens_.size()); }

 private:
  struct DecodableEntry {
    bool exists = false;
    bool special = false;
    std::string text;  // as TokenDecoder::Prepare leaves it
  };

  Impl(text::Normalizer normalizer, text::PreTokenizer pre_tokenizer,
       std::unique_ptr<text::BpeModel> model, text::AddedTokens added_tokens,
       text::PostProcessor post_processor, text::TokenDecoder decoder);

  absl::Status FillTokenTable();
  absl::Status AddToTable(int32_t id, const std::string& token);
  // Appends the ids of `text`, which holds no tokens sought before
  // normalization.
  absl::Status EncodeSegment(absl::string_view text, bool starts_text,
                             std::vector<int32_t>* ids) const;
  absl::Status EncodePieces(absl::string_view text, bool starts_text,
                            std::vector<int32_t>* ids) const;

  text::Normalizer normalizer_;
  text::PreTokenizer pre_tokenizer_;
  std::unique_ptr<text::BpeModel> model_;
  text::AddedTokens added_tokens_;
  text::PostProcessor post_processor_;
  text::TokenDecoder decoder_;
  std::vector<DecodableEntry> tokens_;  // by id
};

}  // namespace expertmesh
