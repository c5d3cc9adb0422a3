#pragma once

// What the Metaspace pre-tokenizer and the Metaspace decoder share.

#include "absl/status/statusor.h"
#include "services/text/config_node.h"

namespace expertmesh::text {

// Which pieces get a mark in front when they do not start with a space.
enum class MetaspacePrepend { kAlways, kFirst, kNever };

// Reads prepend_scheme, or add_prefix_space in files older than it.
absl::StatusOr<MetaspacePrepend> ParseMetaspacePrepend(
    const ConfigNode& config);

}  // namespace expertmesh::text
