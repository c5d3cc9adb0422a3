#include "tests/support/cuda_emulation/context.h"

#include <cstdint>
#include <cstring>

namespace expertmesh::cuda_emulation {

#if defined(__x86_64__)

// swapcontext would save the signal mask with a system call, at a hundred times
// the price, for each lane of each shuffle.
extern "C" void expertmesh_switch_stack(void** from, void* to);
asm(R"(
  .text
  .type expertmesh_switch_stack, @function
expertmesh_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size expertmesh_switch_stack, . - expertmesh_switch_stack
)");

void PrepareContext(std::byte* stack, size_t size, void (*entry)(),
                    Context& context) {
  // From below: six registers to pop, where to return to, and a word that
  // leaves the stack as a call would have.
  constexpr size_t kWords = 8;
  const auto end = reinterpret_cast<uintptr_t>(stack + size) & ~uintptr_t{15};
  auto* words = reinterpret_cast<void**>(end) - kWords;
  std::memset(words, 0, kWords * sizeof(*words));
  words[6] = reinterpret_cast<void*>(entry);
  context.stack_pointer = words;
}

void SwitchContext(Context& from, Context& to) {
  expertmesh_switch_stack(&from.stack_pointer, to.stack_pointer);
}

#else

void PrepareContext(std::byte* stack, size_t size, void (*entry)(),
                    Context& context) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = size;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

void SwitchContext(Context& from, Context& to) {
  swapcontext(&from.state, &to.state);
}

#endif

}  // namespace expertmesh::cuda_emulation
