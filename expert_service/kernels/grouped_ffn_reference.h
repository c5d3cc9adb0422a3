#pragma once

// The specification of GroupedFfn in plain loops.

#include <memory>

#include "expert_service/kernels/grouped_ffn.h"

namespace expertmesh::expert {

// Sums every output as one chain of fused multiply-adds over k ascending and
// takes e^x from the C library. For tests: it is slow and allocates.
std::unique_ptr<GroupedFfn> MakeGroupedFfnReference(
    const GroupedFfnOptions& options);

}  // namespace expertmesh::expert
