#include "services/text/token_decoder.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/text/metaspace.h"

namespace expertmesh::text {

using Kind = DecodeStage::Kind;

absl::StatusOr<TokenDecoder> TokenDecoder::Build(const ConfigNode& root) {
  TokenDecoder decoder;
  if (root.Has("decoder")) {
    ASSIGN_OR_RETURN(const ConfigNode config, root.Get("decoder"));
    RETURN_IF_ERROR(decoder.AddStages(config, 0));
  } else {
    decoder.stages_.push_back({.kind = Kind::kJoin, .literal = " "});
  }
  return decoder;
}

absl::Status TokenDecoder::AddStages(const ConfigNode& config, int depth) {
  if (depth > ConfigNode::kMaxSequenceDepth) {
    return config.Error("sequences are nested too deep");
  }
  ASSIGN_OR_RETURN(const std::string type, config.GetString("type"));
  if (type == "Sequence") {
    RETURN_IF_ERROR(config.AllowKeys({"type", "decoders"}));
    ASSIGN_OR_RETURN(const std::vector<ConfigNode> children,
                     config.GetList("decoders"));
    for (const ConfigNode& child : children) {
      RETURN_IF_ERROR(AddStages(child, depth + 1));
    }
    return absl::OkStatus();
  }
  if (type == "Replace") return AddReplace(config);
  if (type == "ByteFallback") {
    RETURN_IF_ERROR(config.AllowKeys({"type"}));
    return AddStage(config, {.kind = Kind::kByteFallback});
  }
  if (type == "Fuse") {
    RETURN_IF_ERROR(config.AllowKeys({"type"}));
    return AddStage(config, {.kind = Kind::kFuse});
  }
  if (type == "ByteLevel") {
    RETURN_IF_ERROR(config.AllowKeys(
        {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
    return AddStage(config, {.kind = Kind::kByteLevel});
  }
  if (type == "Strip") {
    RETURN_IF_ERROR(config.AllowKeys({"type", "content", "start", "stop"}));
    DecodeStage stage{.kind = Kind::kStrip};
    ASSIGN_OR_RETURN(stage.literal, config.GetCharacter("content"));
    ASSIGN_OR_RETURN(const int32_t start, config.GetInt("start"));
    ASSIGN_OR_RETURN(const int32_t stop, config.GetInt("stop"));
    stage.start = static_cast<size_t>(start);
    stage.stop = static_cast<size_t>(stop);
    return AddStage(config, std::move(stage));
  }
  if (type == "Metaspace") {
    RETURN_IF_ERROR(config.AllowKeys({"type", "replacement", "add_prefix_space",
                                      "prepend_scheme", "split", "str_rep"}));
    DecodeStage stage{.kind = Kind::kMetaspace};
    ASSIGN_OR_RETURN(stage.literal, config.GetCharacter("replacement"));
    ASSIGN_OR_RETURN(const MetaspacePrepend prepend,
                     ParseMetaspacePrepend(config));
    stage.start = prepend == MetaspacePrepend::kNever ? 0 : 1;
    return AddStage(config, std::move(stage));
  }
  return config.Error(absl::StrCat("type ", type, " is not supported"));
}

absl::Status TokenDecoder::AddReplace(const ConfigNode& config) {
  RETURN_IF_ERROR(config.AllowKeys({"type", "pattern", "content"}));
  ASSIGN_OR_RETURN(std::shared_ptr<const Pattern> pattern,
                   Pattern::FromConfig(config));
  ASSIGN_OR_RETURN(std::string content, config.GetString("content"));
  if (stages_.empty()) {
    replacements_.push_back({std::move(pattern), std::move(content)});
    return absl::OkStatus();
  }
  if (pattern->literal() == nullptr) {
    return config.Error(
        "a Replace by Regex after other decoders is not supported");
  }
  return AddStage(config, {.kind = Kind::kReplace,
                           .literal = *pattern->literal(),
                           .content = std::move(content)});
}

absl::Status TokenDecoder::AddStage(const ConfigNode& config,
                                    DecodeStage stage) {
  if (!stages_.empty()) {
    const DecodeStage& before = stages_.back();
    stage.after_join = before.after_join || before.kind == Kind::kFuse ||
                       before.kind == Kind::kByteLevel;
  }
  // What is one token by then has no boundaries left for these.
  const bool needs_tokens = stage.kind == Kind::kByteFallback ||
                            stage.kind == Kind::kByteLevel ||
                            stage.kind == Kind::kMetaspace;
  if (stage.after_join && needs_tokens) {
    return config.Error("is not supported after Fuse or ByteLevel");
  }
  if (stage.after_join && stage.kind == Kind::kFuse) return absl::OkStatus();
  stages_.push_back(std::move(stage));
  return absl::OkStatus();
}

absl::Status TokenDecoder::Prepare(std::string* token) const {
  for (const Replacement& replacement : replacements_) {
    RETURN_IF_ERROR(
        replacement.pattern->ReplaceAll(replacement.content, token));
  }
  return absl::OkStatus();
}

}  // namespace expertmesh::text
