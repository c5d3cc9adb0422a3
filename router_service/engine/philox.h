#pragma once

// Philox-4x32-10, a counter-based random generator: the number at a counter
// needs no state and none of the numbers before it.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC'11.

#include <array>
#include <cstdint>

namespace expertmesh::router {

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                   std::array<uint32_t, 2> key);

}  // namespace expertmesh::router
