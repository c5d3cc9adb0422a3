#pragma once

// Rows that come back added up, as both services speak of them.

#include <cstdint>

namespace expertmesh {

// In row_sum, of a row that comes back by itself; of others it is which sum.
constexpr uint32_t kNoSum = 0xffffffffu;

}  // namespace expertmesh
