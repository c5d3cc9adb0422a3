#include "services/text/pre_tokenizer.h"

#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/text/byte_alphabet.h"
#include "services/text/metaspace.h"
#include "services/text/pattern.h"
#include "services/text/piece_splitter.h"
#include "services/text/unicode.h"

namespace expertmesh::text {
namespace {

// GPT-2's words, which ByteLevel splits at unless told otherwise.
constexpr absl::string_view kGpt2Words =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Runs of word characters and runs of other visible ones, as the regex crate
// of Rust defines \w. PCRE2 syntax.
constexpr absl::string_view kWhitespaceWords =
    R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}]+)"
    R"(|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}\p{Z}\x09-\x0d\x85]+)";

// Rewrites each piece: `rewrite(view, starts_text, &out)` appends its new text.
template <typename Rewrite>
void RewritePieces(const Rewrite& rewrite, PieceList* list) {
  std::string text;
  text.reserve(list->text.size() * 2);
  for (PieceList::Piece& piece : list->pieces) {
    const size_t begin = text.size();
    rewrite(list->View(piece), piece.starts_text, &text);
    piece.begin = begin;
    piece.end = text.size();
  }
  list->text = std::move(text);
}

absl::Status PrependSpace(PieceList* list) {
  RewritePieces(
      [](absl::string_view piece, bool, std::string* out) {
        if (!absl::StartsWith(piece, " ")) out->push_back(' ');
        absl::StrAppend(out, piece);
      },
      list);
  return absl::OkStatus();
}

absl::Status MapBytes(PieceList* list) {
  RewritePieces([](absl::string_view piece, bool,
                   std::string* out) { AppendByteAlphabet(piece, out); },
                list);
  return absl::OkStatus();
}

// Writes spaces as `mark`, and one mark more before a piece that has none.
struct MarkSpaces {
  absl::Status operator()(PieceList* list) const {
    RewritePieces(
        [this](absl::string_view piece, bool starts_text, std::string* out) {
          const bool may_prepend =
              scheme == MetaspacePrepend::kAlways ||
              (scheme == MetaspacePrepend::kFirst && starts_text);
          if (may_prepend && !absl::StartsWith(piece, " ") &&
              !absl::StartsWith(piece, mark)) {
            absl::StrAppend(out, mark);
          }
          for (char c : piece) {
            if (c == ' ') {
              absl::StrAppend(out, mark);
            } else {
              out->push_back(c);
            }
          }
        },
        list);
    return absl::OkStatus();
  }

  std::string mark;
  MetaspacePrepend scheme;
};

using Step = std::function<absl::Status(PieceList*)>;
using Steps = std::vector<Step>;

absl::Status AddSplit(const ConfigNode& config, Steps* steps) {
  RETURN_IF_ERROR(config.AllowKeys({"type", "pattern", "behavior", "invert"}));
  ASSIGN_OR_RETURN(std::shared_ptr<const Pattern> pattern,
                   Pattern::FromConfig(config));
  ASSIGN_OR_RETURN(const SplitBehavior behavior, ParseSplitBehavior(config));
  ASSIGN_OR_RETURN(const bool invert, config.GetBool("invert"));
  steps->push_back(PieceSplitter(std::move(pattern), behavior, invert));
  return absl::OkStatus();
}

absl::Status AddByteLevel(const ConfigNode& config, Steps* steps) {
  // trim_offsets concerns offsets, which nobody asks us for.
  RETURN_IF_ERROR(config.AllowKeys(
      {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  ASSIGN_OR_RETURN(const bool add_space, config.GetBool("add_prefix_space"));
  ASSIGN_OR_RETURN(const bool use_regex, config.GetBool("use_regex", true));
  if (add_space) steps->push_back(PrependSpace);
  if (use_regex) {
    ASSIGN_OR_RETURN(Regex words, Regex::CompileOniguruma(kGpt2Words));
    steps->push_back(
        PieceSplitter(std::make_shared<const Pattern>(std::move(words)),
                      SplitBehavior::kIsolated, /*invert=*/false));
  }
  steps->push_back(MapBytes);
  return absl::OkStatus();
}

absl::Status AddMetaspace(const ConfigNode& config, Steps* steps) {
  RETURN_IF_ERROR(config.AllowKeys({"type", "replacement", "add_prefix_space",
                                    "prepend_scheme", "split", "str_rep"}));
  ASSIGN_OR_RETURN(const std::string mark, config.GetCharacter("replacement"));
  ASSIGN_OR_RETURN(const MetaspacePrepend scheme,
                   ParseMetaspacePrepend(config));
  ASSIGN_OR_RETURN(const bool split, config.GetBool("split", true));
  steps->push_back(MarkSpaces{mark, scheme});
  if (split) {
    steps->push_back(PieceSplitter(std::make_shared<const Pattern>(mark),
                                   SplitBehavior::kMergedWithNext,
                                   /*invert=*/false));
  }
  return absl::OkStatus();
}

absl::Status AddDigits(const ConfigNode& config, Steps* steps) {
  RETURN_IF_ERROR(config.AllowKeys({"type", "individual_digits"}));
  ASSIGN_OR_RETURN(const bool individual, config.GetBool("individual_digits"));
  steps->push_back(PieceSplitter(
      std::make_shared<const Pattern>(&IsNumeric),
      individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous,
      /*invert=*/false));
  return absl::OkStatus();
}

absl::Status AddPunctuation(const ConfigNode& config, Steps* steps) {
  RETURN_IF_ERROR(config.AllowKeys({"type", "behavior"}));
  SplitBehavior behavior = SplitBehavior::kIsolated;
  if (config.Has("behavior")) {
    ASSIGN_OR_RETURN(behavior, ParseSplitBehavior(config));
  }
  steps->push_back(
      PieceSplitter(std::make_shared<const Pattern>(&IsPunctuation), behavior,
                    /*invert=*/false));
  return absl::OkStatus();
}

absl::Status AddWhitespace(const ConfigNode& config, Steps* steps) {
  RETURN_IF_ERROR(config.AllowKeys({"type"}));
  ASSIGN_OR_RETURN(Regex words, Regex::Compile(kWhitespaceWords));
  steps->push_back(
      PieceSplitter(std::make_shared<const Pattern>(std::move(words)),
                    SplitBehavior::kRemoved, /*invert=*/true));
  return absl::OkStatus();
}

absl::Status AddWhitespaceSplit(const ConfigNode& config, Steps* steps) {
  RETURN_IF_ERROR(config.AllowKeys({"type"}));
  steps->push_back(PieceSplitter(std::make_shared<const Pattern>(&IsWhiteSpace),
                                 SplitBehavior::kRemoved, /*invert=*/false));
  return absl::OkStatus();
}

}  // namespace

PieceList::PieceList(std::string whole, bool starts_text)
    : text(std::move(whole)) {
  if (!text.empty()) pieces.push_back({0, text.size(), starts_text});
}

absl::StatusOr<PreTokenizer> PreTokenizer::Build(const ConfigNode& root) {
  PreTokenizer pre_tokenizer;
  if (root.Has("pre_tokenizer")) {
    ASSIGN_OR_RETURN(const ConfigNode config, root.Get("pre_tokenizer"));
    RETURN_IF_ERROR(pre_tokenizer.AddSteps(config, 0));
  }
  return pre_tokenizer;
}

absl::Status PreTokenizer::AddSteps(const ConfigNode& config, int depth) {
  if (depth > ConfigNode::kMaxSequenceDepth) {
    return config.Error("sequences are nested too deep");
  }
  ASSIGN_OR_RETURN(const std::string type, config.GetString("type"));
  if (type == "Split") return AddSplit(config, &steps_);
  if (type == "ByteLevel") return AddByteLevel(config, &steps_);
  if (type == "Metaspace") return AddMetaspace(config, &steps_);
  if (type == "Digits") return AddDigits(config, &steps_);
  if (type == "Punctuation") return AddPunctuation(config, &steps_);
  if (type == "Whitespace") return AddWhitespace(config, &steps_);
  if (type == "WhitespaceSplit") return AddWhitespaceSplit(config, &steps_);
  if (type != "Sequence") {
    return config.Error(absl::StrCat("type ", type, " is not supported"));
  }
  RETURN_IF_ERROR(config.AllowKeys({"type", "pretokenizers"}));
  ASSIGN_OR_RETURN(const std::vector<ConfigNode> children,
                   config.GetList("pretokenizers"));
  for (const ConfigNode& child : children) {
    RETURN_IF_ERROR(AddSteps(child, depth + 1));
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::Apply(PieceList* pieces) const {
  for (const Step& step : steps_) RETURN_IF_ERROR(step(pieces));
  return absl::OkStatus();
}

}  // namespace expertmesh::text
