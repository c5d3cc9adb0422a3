#pragma once

// Counts heap allocations of a test program. The program lists
// allocation_counter.cc among its sources, which replaces operator new.

#include <cstdint>

namespace expertmesh {

// Allocations by operator new, of all threads, since the program started.
int64_t NumAllocations();

}  // namespace expertmesh
