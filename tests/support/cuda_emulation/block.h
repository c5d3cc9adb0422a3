#pragma once

// Runs the blocks of a kernel one after the other, the threads of a block in
// turn on the caller's thread. Nothing here is for use by kernels but what
// cuda_runtime.h makes of it.
//
// A thread runs until it waits for others. Where all wait for some that will
// never come, as at a barrier that others left out, the process aborts and says
// who waits where.

#include <cstddef>
#include <functional>

namespace expertmesh::cuda_emulation {

inline constexpr int kWarpSize = 32;

struct Extent {
  unsigned x = 1, y = 1, z = 1;
};

// Runs kernel() once for each thread. The threads of a block must be whole
// warps. Each block begins with `shared_bytes` of 0xff, NaN as a float. One
// launch of the process at a time; others wait.
void RunBlocks(const Extent& grid, const Extent& block, size_t shared_bytes,
               const std::function<void()>& kernel);

// Of the running block.
std::byte* DynamicShared();

// __syncthreads. Threads that meet must have come from one line.
void MeetBlock(const char* file, int line);

// The lanes of the calling thread's warp meet: the last to come calls
// `meet(lanes)`, lanes[i] being what lane i brought, and then all go on.
// All must bring the same `meet`.
void MeetWarp(void (*meet)(void* const* lanes), void* brought);

// Of the calling thread.
int Lane();

// Aborts unless an address is a multiple of `bytes`.
void CheckAligned(const void* address, size_t bytes);

}  // namespace expertmesh::cuda_emulation
