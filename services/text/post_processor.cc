#include "services/text/post_processor.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::text {

absl::StatusOr<PostProcessor> PostProcessor::Build(const ConfigNode& root) {
  PostProcessor processor;
  if (root.Has("post_processor")) {
    ASSIGN_OR_RETURN(const ConfigNode config, root.Get("post_processor"));
    RETURN_IF_ERROR(processor.AddSteps(config, 0));
  }
  return processor;
}

absl::Status PostProcessor::AddSteps(const ConfigNode& config, int depth) {
  if (depth > ConfigNode::kMaxSequenceDepth) {
    return config.Error("sequences are nested too deep");
  }
  ASSIGN_OR_RETURN(const std::string type, config.GetString("type"));
  if (type == "ByteLevel") {
    return config.AllowKeys(
        {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  }
  if (type == "TemplateProcessing") {
    // To a second one the tokenizers library gives the parts of the first.
    if (has_template_) {
      return config.Error("a second TemplateProcessing is not supported");
    }
    ASSIGN_OR_RETURN(template_, ReadTemplate(config));
    has_template_ = true;
    return absl::OkStatus();
  }
  if (type != "Sequence") {
    return config.Error(absl::StrCat("type ", type, " is not supported"));
  }
  RETURN_IF_ERROR(config.AllowKeys({"type", "processors"}));
  ASSIGN_OR_RETURN(const std::vector<ConfigNode> children,
                   config.GetList("processors"));
  for (const ConfigNode& child : children) {
    RETURN_IF_ERROR(AddSteps(child, depth + 1));
  }
  return absl::OkStatus();
}

absl::StatusOr<PostProcessor::Template> PostProcessor::ReadTemplate(
    const ConfigNode& config) {
  // "pair" is for two texts; we encode one.
  RETURN_IF_ERROR(
      config.AllowKeys({"type", "single", "pair", "special_tokens"}));
  ASSIGN_OR_RETURN(const std::vector<ConfigNode> items,
                   config.GetList("single"));
  ASSIGN_OR_RETURN(const ConfigNode special_tokens,
                   config.Get("special_tokens"));
  Template result;
  for (const ConfigNode& item : items) {
    ASSIGN_OR_RETURN(TemplateItem read, ReadTemplateItem(item, special_tokens));
    result.push_back(std::move(read));
  }
  return result;
}

absl::StatusOr<PostProcessor::TemplateItem> PostProcessor::ReadTemplateItem(
    const ConfigNode& item, const ConfigNode& special_tokens) {
  RETURN_IF_ERROR(item.AllowKeys({"Sequence", "SpecialToken"}));
  if (item.Has("Sequence")) {
    ASSIGN_OR_RETURN(const ConfigNode sequence, item.Get("Sequence"));
    ASSIGN_OR_RETURN(const std::string name, sequence.GetString("id"));
    if (name != "A") return sequence.Error("must be A for a single text");
    return TemplateItem();
  }
  ASSIGN_OR_RETURN(const ConfigNode special, item.Get("SpecialToken"));
  ASSIGN_OR_RETURN(const std::string name, special.GetString("id"));
  ASSIGN_OR_RETURN(const ConfigNode token, special_tokens.Get(name));
  ASSIGN_OR_RETURN(const std::vector<ConfigNode> id_nodes,
                   token.GetList("ids"));
  std::vector<int32_t> ids;
  for (const ConfigNode& node : id_nodes) {
    ASSIGN_OR_RETURN(const int32_t id, node.AsInt());
    ids.push_back(id);
  }
  return TemplateItem(std::move(ids));
}

std::vector<int32_t> PostProcessor::Apply(const std::vector<int32_t>& ids,
                                          bool add_special_tokens) const {
  std::vector<int32_t> result;
  result.reserve(ids.size() + template_.size());
  for (const TemplateItem& item : template_) {
    if (item.has_value() && !add_special_tokens) continue;
    const std::vector<int32_t>& part = item.has_value() ? *item : ids;
    result.insert(result.end(), part.begin(), part.end());
  }
  return result;
}

}  // namespace expertmesh::text
