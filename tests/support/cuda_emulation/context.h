#pragma once

// Switches between stacks on one thread: what the threads of an emulated block
// are made of.

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace expertmesh::cuda_emulation {

// Where a stack left off. Neither copied nor moved once prepared.
struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t state;
#endif
};

// Lets `context` begin with `entry`, which must never return, on the stack of
// `size` bytes. The stack must outlive the last switch to it.
void PrepareContext(std::byte* stack, size_t size, void (*entry)(),
                    Context& context);

// Leaves the running code in `from` and goes on with `to`; returns when
// something switches back to `from`.
void SwitchContext(Context& from, Context& to);

}  // namespace expertmesh::cuda_emulation
