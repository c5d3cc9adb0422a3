// cuBLAS on the CPU: products of bf16 with sums in double. In a stream, like
// everything of the emulation.

#include <cstring>
#include <vector>

#include "expert_service/kernels/cuda/cublas_library.h"
#include "services/core/dtype.h"
#include "tests/support/cuda_emulation/control.h"

namespace expertmesh::expert {
namespace {

constexpr int kNotSupported = 15;
constexpr int kBf16 = 14;
constexpr int kInF32 = 68;
constexpr int kSumsInF32 = 16;

struct Handle {
  cudaStream_t stream = nullptr;
  bool has_workspace = false;
  bool adds_in_f32 = false;
};

int Create(void** handle) {
  *handle = new Handle;
  return 0;
}

int Destroy(void* handle) {
  delete static_cast<Handle*>(handle);
  return 0;
}

int SetStream(void* handle, void* stream) {
  auto& state = *static_cast<Handle*>(handle);
  state.stream = static_cast<cudaStream_t>(stream);
  state.has_workspace = false;
  return 0;
}

int SetWorkspace(void* handle, void* workspace, size_t bytes) {
  static_cast<Handle*>(handle)->has_workspace =
      workspace != nullptr && bytes > 0;
  return 0;
}

int SetMathMode(void* handle, int mode) {
  static_cast<Handle*>(handle)->adds_in_f32 = mode == kSumsInF32;
  return 0;
}

// A group's sizes, and where its products begin among all.
struct Group {
  int m, n, k, lda, ldb, ldc, first, count;
};

void Multiply(const Group& group, const BF16* a, const BF16* b, BF16* c) {
  for (int column = 0; column < group.n; ++column) {
    for (int row = 0; row < group.m; ++row) {
      double sum = 0;
      for (int i = 0; i < group.k; ++i) {
        sum += static_cast<double>(ToF32(a[row * group.lda + i])) *
               ToF32(b[column * group.ldb + i]);
      }
      c[column * group.ldc + row] = ToBF16(static_cast<float>(sum));
    }
  }
}

int GemmGrouped(void* handle, const int* trans_a, const int* trans_b,
                const int* m, const int* n, const int* k, const void* alpha,
                const void* const* a, int a_type, const int* lda,
                const void* const* b, int b_type, const int* ldb,
                const void* beta, void* const* c, int c_type, const int* ldc,
                int group_count, const int* group_size, int compute_type) {
  const auto& state = *static_cast<const Handle*>(handle);
  // Arrays of sizes would be read when a graph is launched.
  bool is_supported = state.has_workspace && state.adds_in_f32 &&
                      !cuda_emulation::IsRecording(state.stream) &&
                      a_type == kBf16 && b_type == kBf16 && c_type == kBf16 &&
                      compute_type == kInF32;
  std::vector<Group> groups;
  int first = 0;
  for (int g = 0; g < group_count; ++g) {
    is_supported &= trans_a[g] == 1 && trans_b[g] == 0 && m[g] > 0 &&
                    n[g] > 0 && k[g] > 0 &&
                    static_cast<const float*>(alpha)[g] == 1.0f &&
                    static_cast<const float*>(beta)[g] == 0.0f;
    groups.push_back(
        {m[g], n[g], k[g], lda[g], ldb[g], ldc[g], first, group_size[g]});
    first += group_size[g];
  }
  if (!is_supported) return kNotSupported;
  // Sizes are read now, where matrices are when the stream gets there.
  return cuda_emulation::Launch(1, 32, 0, state.stream, [=] {
    if (threadIdx.x != 0) return;
    for (const Group& group : groups) {
      for (int i = group.first; i < group.first + group.count; ++i) {
        for (const void* matrix : {a[i], b[i], const_cast<const void*>(c[i])}) {
          cuda_emulation::CheckAligned(matrix, 16);
        }
        Multiply(group, static_cast<const BF16*>(a[i]),
                 static_cast<const BF16*>(b[i]), static_cast<BF16*>(c[i]));
      }
    }
  });
}

}  // namespace

absl::StatusOr<CublasFunctions> LoadCublas() {
  if (!cuda_emulation::HasCublas()) {
    return absl::FailedPreconditionError("cuBLAS cannot be loaded: emulated");
  }
  return CublasFunctions{Create,       Destroy,     SetStream,
                         SetWorkspace, SetMathMode, GemmGrouped};
}

}  // namespace expertmesh::expert
