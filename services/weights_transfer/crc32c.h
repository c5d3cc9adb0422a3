#pragma once

// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), as iSCSI has it.

#include <cstdint>

#include "absl/strings/string_view.h"

namespace expertmesh {

uint32_t Crc32c(absl::string_view bytes);

}  // namespace expertmesh
