// Reading a BpeModel from tokenizer.json.

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "services/core/status_macros.h"
#include "services/text/bpe_model.h"

namespace expertmesh::text {
namespace {

using MergePair = std::pair<std::string, std::string>;

// A merge as ["left", "right"] or, in older files, as "left right".
absl::StatusOr<MergePair> ParseMerge(const ConfigNode& merge) {
  const nlohmann::json& value = merge.value();
  if (value.is_array() && value.size() == 2 && value[0].is_string() &&
      value[1].is_string()) {
    return MergePair(value[0].get<std::string>(), value[1].get<std::string>());
  }
  if (value.is_string()) {
    const std::vector<std::string> sides =
        absl::StrSplit(value.get<std::string>(), ' ');
    if (sides.size() == 2) return MergePair(sides[0], sides[1]);
  }
  return merge.Error("a merge must name two tokens");
}

// An optional string of which "" means none.
absl::StatusOr<std::string> GetAffix(const ConfigNode& config,
                                     absl::string_view key) {
  if (!config.Has(key)) return std::string();
  return config.GetString(key);
}

}  // namespace

absl::StatusOr<std::unique_ptr<BpeModel>> BpeModel::Build(
    const ConfigNode& root) {
  ASSIGN_OR_RETURN(const ConfigNode config, root.Get("model"));
  // The oldest files leave the type out.
  if (config.Has("type")) {
    ASSIGN_OR_RETURN(const std::string type, config.GetString("type"));
    if (type != "BPE") {
      return config.Error(
          absl::StrCat("type ", type, " is not supported, only BPE"));
    }
  }
  RETURN_IF_ERROR(config.AllowKeys(
      {"type", "dropout", "unk_token", "continuing_subword_prefix",
       "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges",
       "vocab", "merges"}));
  std::unique_ptr<BpeModel> model(new BpeModel());
  RETURN_IF_ERROR(model->ReadVocab(config));
  RETURN_IF_ERROR(model->ReadOptions(config));
  RETURN_IF_ERROR(model->ReadMerges(config));
  model->IndexVocab();
  model->IndexJoints();
  return model;
}

absl::Status BpeModel::ReadOptions(const ConfigNode& config) {
  if (config.Has("dropout") && config.value()["dropout"] != 0.0) {
    return config.Error("dropout other than 0 is not supported");
  }
  ASSIGN_OR_RETURN(fuse_unknown_, config.GetBool("fuse_unk", false));
  ASSIGN_OR_RETURN(byte_fallback_, config.GetBool("byte_fallback", false));
  ASSIGN_OR_RETURN(ignore_merges_, config.GetBool("ignore_merges", false));
  ASSIGN_OR_RETURN(prefix_, GetAffix(config, "continuing_subword_prefix"));
  ASSIGN_OR_RETURN(suffix_, GetAffix(config, "end_of_word_suffix"));
  ASSIGN_OR_RETURN(const std::string unknown, GetAffix(config, "unk_token"));
  if (unknown.empty()) return absl::OkStatus();
  unknown_id_ = TokenId(unknown);
  if (!unknown_id_.has_value()) {
    return config.Error(
        absl::StrCat("unk_token ", unknown, " is not in the vocabulary"));
  }
  return absl::OkStatus();
}

absl::Status BpeModel::ReadVocab(const ConfigNode& config) {
  ASSIGN_OR_RETURN(const ConfigNode vocab, config.Get("vocab"));
  if (!vocab.value().is_object()) return vocab.Error("must be an object");
  vocab_.reserve(vocab.value().size());
  absl::flat_hash_map<int32_t, absl::string_view> token_of;
  token_of.reserve(vocab.value().size());
  for (const auto& item : vocab.value().items()) {
    ASSIGN_OR_RETURN(const int32_t id,
                     ConfigNode(&item.value(), "model.vocab").AsInt());
    const auto [entry, is_new] = token_of.try_emplace(id, item.key());
    if (!is_new) {
      return vocab.Error(absl::StrCat("id ", id, " belongs to both ",
                                      entry->second, " and ", item.key()));
    }
    vocab_.emplace(item.key(), id);
  }
  return absl::OkStatus();
}

absl::Status BpeModel::ReadMerges(const ConfigNode& config) {
  ASSIGN_OR_RETURN(const ConfigNode merges, config.Get("merges"));
  if (!merges.value().is_array()) return merges.Error("must be a list");
  merges_.reserve(merges.value().size());
  uint32_t rank = 0;
  for (size_t i = 0; i < merges.value().size(); ++i) {
    const nlohmann::json& value = merges.value()[i];
    const ConfigNode place(&value, absl::StrCat("model.merges[", i, "]"));
    // The first line of a merges.txt, kept by some converters.
    if (value.is_string() &&
        absl::StartsWith(value.get_ref<const std::string&>(), "#version")) {
      continue;
    }
    ASSIGN_OR_RETURN(const MergePair pair, ParseMerge(place));
    const auto left = TokenId(pair.first);
    const auto right = TokenId(pair.second);
    if (!left.has_value() || !right.has_value()) {
      return place.Error(absl::StrCat(left ? pair.second : pair.first,
                                      " is not in the vocabulary"));
    }
    if (!absl::StartsWith(pair.second, prefix_)) {
      return place.Error(absl::StrCat(pair.second, " lacks the prefix ",
                                      prefix_, " of continuing tokens"));
    }
    const std::string merged = absl::StrCat(
        pair.first, absl::string_view(pair.second).substr(prefix_.size()));
    const auto id = TokenId(merged);
    if (!id.has_value()) {
      return place.Error(absl::StrCat(merged, " is not in the vocabulary"));
    }
    // Of a pair listed twice the later one counts.
    merges_[PairKey(*left, *right)] = Merge{rank++, *id};
  }
  return absl::OkStatus();
}

}  // namespace expertmesh::text
