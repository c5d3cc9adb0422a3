#include "services/text/normalizer.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/text/byte_alphabet.h"
#include "services/text/pattern.h"
#include "services/text/unicode.h"
#include "services/text/utf8.h"

namespace expertmesh::text {
namespace {

using Step = std::function<absl::Status(std::string*)>;

// A step that cannot fail.
template <typename Transform>
Step Always(Transform transform) {
  return [transform = std::move(transform)](std::string* text) {
    transform(text);
    return absl::OkStatus();
  };
}

Step NormalFormStep(NormalForm form) {
  return Always([form](std::string* text) { *text = Normalize(*text, form); });
}

absl::StatusOr<Step> PrependStep(const ConfigNode& config) {
  RETURN_IF_ERROR(config.AllowKeys({"type", "prepend"}));
  ASSIGN_OR_RETURN(std::string prefix, config.GetString("prepend"));
  return Always([prefix = std::move(prefix)](std::string* text) {
    if (!text->empty()) text->insert(0, prefix);
  });
}

absl::StatusOr<Step> ReplaceStep(const ConfigNode& config) {
  RETURN_IF_ERROR(config.AllowKeys({"type", "pattern", "content"}));
  ASSIGN_OR_RETURN(std::shared_ptr<const Pattern> pattern,
                   Pattern::FromConfig(config));
  ASSIGN_OR_RETURN(std::string content, config.GetString("content"));
  return Step([pattern = std::move(pattern),
               content = std::move(content)](std::string* text) {
    return pattern->ReplaceAll(content, text);
  });
}

void StripLeft(std::string* text) {
  size_t keep = 0;
  for (size_t offset = 0; offset < text->size(); keep = offset) {
    if (!IsWhiteSpace(NextCharacter(*text, &offset))) break;
  }
  text->erase(0, keep);
}

void StripRight(std::string* text) {
  size_t end = text->size();
  while (end > 0) {
    const size_t start = PreviousBoundary(*text, end);
    size_t offset = start;
    if (!IsWhiteSpace(NextCharacter(*text, &offset))) break;
    end = start;
  }
  text->resize(end);
}

absl::StatusOr<Step> StripStep(const ConfigNode& config) {
  RETURN_IF_ERROR(config.AllowKeys({"type", "strip_left", "strip_right"}));
  ASSIGN_OR_RETURN(const bool left, config.GetBool("strip_left"));
  ASSIGN_OR_RETURN(const bool right, config.GetBool("strip_right"));
  return Always([left, right](std::string* text) {
    if (left) StripLeft(text);
    if (right) StripRight(text);
  });
}

Step LowercaseStep() {
  return Always([](std::string* text) { *text = ToLower(*text); });
}

Step ByteLevelStep() {
  return Always([](std::string* text) {
    std::string mapped;
    AppendByteAlphabet(*text, &mapped);
    *text = std::move(mapped);
  });
}

absl::StatusOr<Step> BuildStep(const std::string& type,
                               const ConfigNode& config) {
  if (type == "Prepend") return PrependStep(config);
  if (type == "Replace") return ReplaceStep(config);
  if (type == "Strip") return StripStep(config);
  RETURN_IF_ERROR(config.AllowKeys({"type"}));
  if (type == "NFC") return NormalFormStep(NormalForm::kNfc);
  if (type == "NFD") return NormalFormStep(NormalForm::kNfd);
  if (type == "NFKC") return NormalFormStep(NormalForm::kNfkc);
  if (type == "NFKD") return NormalFormStep(NormalForm::kNfkd);
  if (type == "Lowercase") return LowercaseStep();
  if (type == "ByteLevel") return ByteLevelStep();
  return config.Error(absl::StrCat("type ", type, " is not supported"));
}

}  // namespace

absl::StatusOr<Normalizer> Normalizer::Build(const ConfigNode& root) {
  Normalizer normalizer;
  if (root.Has("normalizer")) {
    ASSIGN_OR_RETURN(const ConfigNode config, root.Get("normalizer"));
    RETURN_IF_ERROR(normalizer.AddSteps(config, 0));
  }
  return normalizer;
}

absl::Status Normalizer::AddSteps(const ConfigNode& config, int depth) {
  if (depth > ConfigNode::kMaxSequenceDepth) {
    return config.Error("sequences are nested too deep");
  }
  ASSIGN_OR_RETURN(const std::string type, config.GetString("type"));
  if (type != "Sequence") {
    ASSIGN_OR_RETURN(Step step, BuildStep(type, config));
    steps_.push_back(std::move(step));
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(config.AllowKeys({"type", "normalizers"}));
  ASSIGN_OR_RETURN(const std::vector<ConfigNode> children,
                   config.GetList("normalizers"));
  for (const ConfigNode& child : children) {
    RETURN_IF_ERROR(AddSteps(child, depth + 1));
  }
  return absl::OkStatus();
}

absl::Status Normalizer::Apply(std::string* text) const {
  for (const Step& step : steps_) RETURN_IF_ERROR(step(text));
  return absl::OkStatus();
}

}  // namespace expertmesh::text
