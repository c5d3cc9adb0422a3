#include "services/linalg/isa/isa_choice.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "services/core/log.h"

namespace expertmesh {
namespace {

// The highest first, but for one case: Intel's cores run vdpbf16ps at half the
// rate of the fused multiply-adds it stands for (68 against 136 GFLOP/s
// measured on Sapphire Rapids), so those are faster where there are no tiles,
// and their bits are those of every other CPU.
std::vector<Isa> FastestFirst() {
  std::vector<Isa> isas;
  for (const Isa isa : kAllIsas) {
    if (KernelsFor(isa) != nullptr) isas.insert(isas.begin(), isa);
  }
#if defined(__x86_64__)
  const auto pairs = std::find(isas.begin(), isas.end(), Isa::kAvx512BF16);
  if (pairs != isas.end() && __builtin_cpu_is("intel")) {
    std::iter_swap(pairs, std::next(pairs));  // a CPU with it has VNNI
  }
#endif
  return isas;
}

const char* DemandedIsa() {
  const char* name = std::getenv("EXPERTMESH_ISA");
  return name == nullptr ? "" : name;
}

}  // namespace

std::vector<Isa> CandidateIsas(absl::string_view demanded) {
  std::vector<Isa> isas = FastestFirst();
  if (demanded.empty()) return isas;
  for (const Isa isa : isas) {
    if (demanded == IsaNameOf(isa)) return {isa};
  }
  Log(LogLevel::kWarning, "EXPERTMESH_ISA names no instruction set of this CPU",
      {{"value", demanded}, {"using", IsaNameOf(isas.front())}});
  return isas;
}

const std::vector<Isa>& CandidateIsas() {
  static const std::vector<Isa> isas = CandidateIsas(DemandedIsa());
  return isas;
}

}  // namespace expertmesh
