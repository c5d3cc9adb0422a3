#pragma once

// Text to token ids and back, by a router or by a tokenizer.json here.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "services/cli/client.h"

namespace expertmesh {

class TextCoder {
 public:
  virtual ~TextCoder() = default;
  virtual absl::StatusOr<std::vector<uint32_t>> Encode(const std::string& text,
                                                       bool no_special) = 0;
  virtual absl::StatusOr<std::string> Decode(absl::Span<const uint32_t> ids,
                                             bool skip_special) = 0;
};

absl::StatusOr<std::unique_ptr<TextCoder>> RemoteCoder(
    const ServerFlags& flags);

// `path`: a checkpoint folder, or a tokenizer.json. Where a config.json lies
// beside it, ids that only the model has decode to nothing, as a router does
// it. Errors: those of Tokenizer::Load, and FAILED_PRECONDITION for a
// config.json that cannot be read.
absl::StatusOr<std::unique_ptr<TextCoder>> LocalCoder(const std::string& path);

}  // namespace expertmesh
