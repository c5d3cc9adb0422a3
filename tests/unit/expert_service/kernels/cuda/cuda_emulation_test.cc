// The emulation of CUDA itself: what it lets pass is not found elsewhere.

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <array>
#include <numeric>

#include "tests/support/cuda_emulation/control.h"
#include "tests/support/cuda_emulation/tensor_core.h"
#include "tests/unit/expert_service/kernels/cuda/device_memory.h"
#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh::expert {
namespace {

using cuda_emulation::RunBlocks;

class CudaEmulationTest : public testing::Test {
 protected:
  ~CudaEmulationTest() override {
    cuda_emulation::ClearFault();
    cuda_emulation::SetDeviceCount(1);
    cuda_emulation::SetDeviceMemory(size_t{1} << 30);
  }
};

TEST_F(CudaEmulationTest, EachThreadOfEachBlockRunsOnce) {
  std::array<std::array<int, 96>, 6> runs = {};
  RunBlocks({3, 2, 1}, {48, 2, 1}, 0, [&] {
    const unsigned block = blockIdx.x + gridDim.x * blockIdx.y;
    ++runs[block][threadIdx.x + blockDim.x * threadIdx.y];
  });
  for (const auto& block : runs) {
    for (const int count : block) EXPECT_EQ(count, 1);
  }
}

TEST_F(CudaEmulationTest, ThreadsSeeWhatOthersWroteBeforeABarrier) {
  std::vector<int> sums(128);
  RunBlocks({}, {128, 1, 1}, 128 * sizeof(int), [&] {
    auto* const shared =
        reinterpret_cast<int*>(cuda_emulation::DynamicShared());
    EXPECT_EQ(shared[threadIdx.x], -1) << "of another block";
    for (int turn = 0; turn < 3; ++turn) {
      shared[threadIdx.x] = static_cast<int>(threadIdx.x) + turn;
      __syncthreads();
      sums[threadIdx.x] += shared[(threadIdx.x + 77) % 128];
      __syncthreads();
    }
  });
  for (int i = 0; i < 128; ++i) EXPECT_EQ(sums[i], 3 * ((i + 77) % 128) + 3);
}

TEST_F(CudaEmulationTest, ShufflesWithinAWarp) {
  RunBlocks({}, {64, 1, 1}, 0, [] {
    const int thread = static_cast<int>(threadIdx.x);
    const int warp = thread / 32 * 32;
    const int lane = thread % 32;
    EXPECT_EQ(__shfl_xor_sync(~0u, thread, 5), warp + (lane ^ 5));
    EXPECT_EQ(__shfl_sync(~0u, thread, 9), warp + 9);
    EXPECT_EQ(__shfl_down_sync(~0u, thread, 20),
              lane < 12 ? thread + 20 : thread);
    if (warp == 0) __syncwarp();
  });
}

using CudaEmulationDeathTest = CudaEmulationTest;

TEST_F(CudaEmulationDeathTest, FindsThreadsThatLeaveABarrierOut) {
  const auto leave_out = [] {
    if (threadIdx.x != 3) __syncthreads();
  };
  EXPECT_DEATH(RunBlocks({}, {64, 1, 1}, 0, leave_out),
               "deadlock: 1 threads are done.*63 at the barrier");
  const auto take_two = [] {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  };
  EXPECT_DEATH(RunBlocks({}, {64, 1, 1}, 0, take_two), "different barriers");
  const auto leave_warp_out = [] {
    if (threadIdx.x != 3) __syncwarp();
  };
  EXPECT_DEATH(RunBlocks({}, {32, 1, 1}, 0, leave_warp_out),
               "31 wait for their warp");
}

TEST_F(CudaEmulationDeathTest, FindsUnalignedLoads) {
  alignas(16) char bytes[32] = {};
  EXPECT_DEATH(
      RunBlocks({}, {32, 1, 1}, 0, [&] { cuda_emulation::Load16(bytes + 8); }),
      "not aligned");
}

TEST_F(CudaEmulationTest, TensorCoresMultiply) {
  constexpr int kM = 16, kN = 8, kK = 16;
  const TypedValues a(RandomFloats(kM * kK, 1), DType::kBF16);
  const TypedValues b(RandomFloats(kK * kN, 2), DType::kBF16);
  const std::vector<float> c = RandomFloats(kM * kN, 3);
  std::vector<float> d(kM * kN);
  const auto pair = [](const std::vector<float>& values, int first, int step) {
    return static_cast<uint32_t>(ToBF16(values[first]).bits) |
           static_cast<uint32_t>(ToBF16(values[first + step]).bits) << 16;
  };
  RunBlocks({}, {32, 1, 1}, 0, [&] {
    const int g = static_cast<int>(threadIdx.x) / 4;
    const int t = static_cast<int>(threadIdx.x) % 4 * 2;
    const uint32_t operand[4] = {
        pair(a.f32, g * kK + t, 1), pair(a.f32, (g + 8) * kK + t, 1),
        pair(a.f32, g * kK + t + 8, 1), pair(a.f32, (g + 8) * kK + t + 8, 1)};
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = c[(g + i / 2 * 8) * kN + t + i % 2];
    cuda_emulation::Mma(operand, pair(b.f32, t * kN + g, kN),
                        pair(b.f32, (t + 8) * kN + g, kN), sums);
    for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * kN + t + i % 2] = sums[i];
  });
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kN; ++n) {
      double sum = c[m * kN + n];
      for (int k = 0; k < kK; ++k) {
        sum += static_cast<double>(a.f32[m * kK + k]) * b.f32[k * kN + n];
      }
      EXPECT_NEAR(d[m * kN + n], sum, 1e-6) << m << ", " << n;
    }
  }
}

TEST_F(CudaEmulationTest, CopiesToSharedMemoryArriveWhenAwaited) {
  alignas(16) const int from[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  RunBlocks({}, {32, 1, 1}, 32 * 32, [&] {
    auto* const to = reinterpret_cast<int*>(cuda_emulation::DynamicShared() +
                                            threadIdx.x * 32);
    cuda_emulation::CopyAsync16(to, from);
    cuda_emulation::CommitCopies();
    cuda_emulation::CopyAsync16(to + 4, from + 4);
    cuda_emulation::CommitCopies();
    EXPECT_EQ(to[0], -1);
    cuda_emulation::WaitForCopies<1>();
    EXPECT_EQ(to[3], 4);
    EXPECT_EQ(to[4], -1);
    cuda_emulation::WaitForCopies<0>();
    EXPECT_EQ(to[7], 8);
  });
}

TEST_F(CudaEmulationTest, StreamsWorkWhenAwaited) {
  int* host = nullptr;
  ASSERT_EQ(cudaHostAlloc(&host, 2 * sizeof(int), cudaHostAllocDefault),
            cudaSuccess);
  const DeviceMemory device(sizeof(int));
  cudaStream_t first, second;
  cudaEvent_t event;
  ASSERT_EQ(cudaStreamCreate(&first), cudaSuccess);
  ASSERT_EQ(cudaStreamCreate(&second), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&event), cudaSuccess);
  host[0] = 1;
  host[1] = 0;
  cudaMemcpyAsync(device.data(), host, 4, cudaMemcpyHostToDevice, first);
  host[0] = 2;  // too early: the copy has not been waited for
  cudaEventRecord(event, first);
  cudaStreamWaitEvent(second, event, 0);
  cudaMemcpyAsync(host + 1, device.data(), 4, cudaMemcpyDeviceToHost, second);
  EXPECT_EQ(host[1], 0);
  EXPECT_EQ(cudaStreamSynchronize(second), cudaSuccess);
  EXPECT_EQ(host[1], 2);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(first), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(second), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(host), cudaSuccess);
}

TEST_F(CudaEmulationTest, CallsFailAsPlanned) {
  cuda_emulation::PlanFault({.call = 2, .error = cudaErrorIllegalAddress});
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cuda_emulation::CallsCounted(), 3);
  cuda_emulation::PlanFault({.call = 1, .lasting = true});
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
}

TEST_F(CudaEmulationTest, MemoryEnds) {
  cuda_emulation::SetDeviceMemory(1000);
  const size_t used = cuda_emulation::DeviceBytesInUse();
  void* data = nullptr;
  ASSERT_EQ(cudaMalloc(&data, 600), cudaSuccess);
  void* more = nullptr;
  EXPECT_EQ(cudaMalloc(&more, 600), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaFree(data), cudaSuccess);
  EXPECT_EQ(cuda_emulation::DeviceBytesInUse(), used);
  EXPECT_EQ(cudaMalloc(&more, 600), cudaSuccess);
  EXPECT_EQ(cudaFree(more), cudaSuccess);
}

}  // namespace
}  // namespace expertmesh::expert
