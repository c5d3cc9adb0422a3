#include "services/linalg/isa/kernels.h"
#include "services/linalg/isa/simd_avx512.h"
// The bodies take their lanes from the header above.
#include "services/linalg/isa/gemm_body.h"
#include "services/linalg/isa/vector_body.h"
// attention_body.h uses vector_body.h.
#include "services/linalg/isa/attention_body.h"
#include "services/linalg/isa/bytes_avx512bw.h"
#include "services/linalg/isa/codes_body.h"
#include "services/linalg/isa/quantized_body.h"
#include "services/linalg/isa/table_body.h"

namespace expertmesh {

constinit const Kernels kAvx512Kernels = MakeTable<Avx512BWBytes>();

}  // namespace expertmesh
