#pragma once

// Which instruction set multiplies: the fastest of this CPU, unless the
// environment names one or the check at load (self_check.h) finds it broken.

#include <vector>

#include "absl/strings/string_view.h"
#include "services/linalg/isa/kernels.h"

namespace expertmesh {

// The instruction sets of this CPU, fastest first, or the one alone that
// `demanded` names. A name that this CPU lacks is logged and demands nothing.
// Never empty.
std::vector<Isa> CandidateIsas(absl::string_view demanded);

// Of the environment variable EXPERTMESH_ISA, read once. The first one is in
// use until SetActiveIsa says otherwise.
const std::vector<Isa>& CandidateIsas();

}  // namespace expertmesh
