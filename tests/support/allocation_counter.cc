#include "tests/support/allocation_counter.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<int64_t> num_allocations{0};

}  // namespace

namespace expertmesh {

int64_t NumAllocations() { return num_allocations.load(); }

}  // namespace expertmesh

// The array and nothrow forms of the library call this one.
void* operator new(std::size_t size) {
  ++num_allocations;
  if (void* const memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
