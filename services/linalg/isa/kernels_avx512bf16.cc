#include "services/linalg/isa/kernels.h"
#include "services/linalg/isa/simd_avx512.h"
// The bodies take their lanes from the header above.
#include "services/linalg/isa/gemm_body.h"
#include "services/linalg/isa/vector_body.h"
// attention_body.h uses vector_body.h.
#include "services/linalg/isa/attention_body.h"
#include "services/linalg/isa/bytes_vnni.h"
#include "services/linalg/isa/codes_body.h"
#include "services/linalg/isa/quantized_body.h"
#include "services/linalg/isa/table_body.h"

namespace expertmesh {
namespace {

// bf16 by bf16 as sums of two products in one instruction, pairs of k
// ascending. The zero beside the last of an odd k meets the padding's zero.
struct PairDot {
  static constexpr int kHalves = 1;
  struct Weights {
    using Element = uint16_t;
    template <int kHalf>
    static EXPERTMESH_INLINE __m512bh Get(const uint16_t* w, int64_t p,
                                          int col) {
      return (__m512bh)_mm512_loadu_si512(w + p * 128 + col * 32);
    }
  };
  struct Acts {
    using Element = uint16_t;
    template <int kHalf>
    static EXPERTMESH_INLINE __m512bh Get(const uint16_t* x, int64_t p) {
      int32_t pair;
      __builtin_memcpy(&pair, x + 2 * p, 4);
      return (__m512bh)_mm512_set1_epi32(pair);
    }
    static EXPERTMESH_INLINE __m512bh GetLast(const uint16_t* x, int64_t p) {
      return (__m512bh)_mm512_set1_epi32(x[2 * p]);
    }
  };
  static EXPERTMESH_INLINE F32x16 Step(F32x16 acc, __m512bh w, __m512bh x) {
    return {_mm512_dpbf16_ps(acc.v, w, x)};
  }
};

constexpr Kernels MakePairDotTable() {
  Kernels table = MakeTable<VnniBytes>();
  table.gemm_panel[1][1] = GemmPanel<PairDot>;
  return table;
}

}  // namespace

constinit const Kernels kAvx512BF16Kernels = MakePairDotTable();

}  // namespace expertmesh
