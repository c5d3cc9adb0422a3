#include "services/linalg/isa/kernels.h"

#include <atomic>
#include <iterator>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "absl/strings/string_view.h"
#include "services/linalg/gemm.h"
#include "services/linalg/isa/isa_choice.h"

namespace expertmesh {
namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports knows F16C by name in GCC only.
bool CpuHasF16C() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool CpuHasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         CpuHasF16C();
}

bool CpuHasAvx512() {
  return CpuHasAvx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw");
}

bool CpuHasAvx512Vnni() {
  return CpuHasAvx512() && __builtin_cpu_supports("avx512vnni");
}

bool CpuHasAvx512BF16() {
  return CpuHasAvx512Vnni() && __builtin_cpu_supports("avx512bf16");
}

// The CPU, and the kernel's leave to use its tiles, whose state is large; it
// holds for all threads of the process.
bool CpuHasAmx() {
  constexpr unsigned kTileBits = bit_AMX_TILE | bit_AMX_INT8 | bit_AMX_BF16;
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return CpuHasAvx512BF16() &&
         __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
         (edx & kTileBits) == kTileBits &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

struct Tables {
  const Kernels* of[std::size(kAllIsas)] =
      {};  // by Isa; null where the CPU lacks it
};

// Asked once: under a hypervisor every cpuid is a trap.
Tables ProbeCpu() {
  Tables tables;
  tables.of[static_cast<int>(Isa::kPortable)] = &kPortableKernels;
#if defined(__x86_64__)
  if (CpuHasAvx2()) tables.of[static_cast<int>(Isa::kAvx2)] = &kAvx2Kernels;
  if (CpuHasAvx512()) {
    tables.of[static_cast<int>(Isa::kAvx512)] = &kAvx512Kernels;
  }
  if (CpuHasAvx512Vnni()) {
    tables.of[static_cast<int>(Isa::kAvx512Vnni)] = &kAvx512VnniKernels;
  }
  if (CpuHasAvx512BF16()) {
    tables.of[static_cast<int>(Isa::kAvx512BF16)] = &kAvx512BF16Kernels;
  }
  if (CpuHasAmx()) tables.of[static_cast<int>(Isa::kAmx)] = &kAmxKernels;
#endif
  return tables;
}

Tables& AllTables() {
  static Tables tables = ProbeCpu();
  return tables;
}

std::atomic<Isa>& Active() {
  static std::atomic<Isa> active{CandidateIsas().front()};
  return active;
}

}  // namespace

const char* IsaNameOf(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512vnni";
    case Isa::kAvx512BF16:
      return "avx512bf16";
    case Isa::kAmx:
      return "amx";
  }
  return "?";
}

const Kernels* KernelsFor(Isa isa) {
  return AllTables().of[static_cast<int>(isa)];
}

const Kernels& ActiveKernels() { return *KernelsFor(ActiveIsa()); }

Isa ActiveIsa() { return Active().load(std::memory_order_relaxed); }

void SetActiveIsa(Isa isa) { Active().store(isa); }

void SetKernelsForTest(Isa isa, const Kernels* table) {
  AllTables().of[static_cast<int>(isa)] = table;
}

absl::string_view IsaName() { return IsaNameOf(ActiveIsa()); }

}  // namespace expertmesh
