#include "tests/support/cuda_emulation/tensor_core.h"

#include <deque>
#include <vector>

namespace expertmesh::cuda_emulation {
namespace {

constexpr int kOutputs = 16;
constexpr int kRows = 8;
constexpr int kDepth = 16;

struct Copy {
  void* to;
  const void* from;
};

// Of one thread of the running block: groups that are closed, and the open one.
struct Copies {
  std::deque<std::vector<Copy>> closed;
  std::vector<Copy> open;
};

Copies& CopiesOfThread() {
  static std::array<Copies, 1024> copies;
  return copies[threadIdx.x];
}

}  // namespace

// As PTX lays out m16n8k16: registers of A are (row g, k 2 t), (g + 8, 2 t),
// (g, 2 t + 8), (g + 8, 2 t + 8) with one k more in the upper half; of B
// (k 2 t, column g), (2 t + 8, g); of C (row g, columns 2 t, 2 t + 1), (g + 8,
// the same).
void MmaOfWarp(void* const* lanes) {
  float a[kOutputs][kDepth];
  float b[kRows][kDepth];
  const auto operands = [&](int lane) -> MmaOperands& {
    return *static_cast<MmaOperands*>(lanes[lane]);
  };
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4;
    const int k = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      float* const to = &a[g + i % 2 * 8][k + i / 2 * 8];
      to[0] = LowBf16(operands(lane).a[i]);
      to[1] = HighBf16(operands(lane).a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[g][k + i * 8] = LowBf16(operands(lane).b[i]);
      b[g][k + i * 8 + 1] = HighBf16(operands(lane).b[i]);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const float* const output = a[lane / 4 + i / 2 * 8];
      const float* const row = b[lane % 4 * 2 + i % 2];
      double sum = 0;
      for (int k = 0; k < kDepth; ++k) {
        sum += static_cast<double>(output[k]) * row[k];
      }
      float& c = operands(lane).c[i];
      c = static_cast<float>(c + sum);
    }
  }
}

void CopyAsync16(void* shared, const void* global) {
  CheckAligned(shared, 16);
  CheckAligned(global, 16);
  CopiesOfThread().open.push_back({shared, global});
}

void CommitCopies() {
  Copies& copies = CopiesOfThread();
  copies.closed.push_back(std::move(copies.open));
  copies.open.clear();
}

void WaitForGroups(int groups_left) {
  auto& closed = CopiesOfThread().closed;
  for (; closed.size() > static_cast<size_t>(groups_left); closed.pop_front()) {
    for (const Copy& copy : closed.front()) {
      std::memcpy(copy.to, copy.from, 16);
    }
  }
}

}  // namespace expertmesh::cuda_emulation
