#pragma once

// The "post_processor" of tokenizer.json: puts special tokens around the ids.

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/text/config_node.h"

namespace expertmesh::text {

// Immutable; thread-safe. Knows Sequence, TemplateProcessing (its template for
// a single text; one in all) and ByteLevel, which changes offsets only.
class PostProcessor {
 public:
  // Reads `root`.post_processor; null or absent does nothing.
  // Errors: FAILED_PRECONDITION naming the place.
  static absl::StatusOr<PostProcessor> Build(const ConfigNode& root);

  std::vector<int32_t> Apply(const std::vector<int32_t>& ids,
                             bool add_special_tokens) const;

 private:
  // Ids of a special token, or the text.
  using TemplateItem = std::optional<std::vector<int32_t>>;
  using Template = std::vector<TemplateItem>;

  absl::Status AddSteps(const ConfigNode& config, int depth);
  static absl::StatusOr<Template> ReadTemplate(const ConfigNode& config);
  static absl::StatusOr<TemplateItem> ReadTemplateItem(
      const ConfigNode& item, const ConfigNode& special_tokens);

  Template template_ = {TemplateItem()};  // the text alone
  bool has_template_ = false;
};

}  // namespace expertmesh::text
