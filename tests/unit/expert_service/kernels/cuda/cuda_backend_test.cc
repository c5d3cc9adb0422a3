// What a device computes, real or emulated.

#include "expert_service/kernels/cuda/cuda_backend.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "expert_service/kernels/grouped_ffn_reference.h"
#include "tests/unit/expert_service/kernels/cuda/cuda_backend_fixture.h"

namespace expertmesh::expert {
namespace {

TEST_F(CudaBackendTest, ComputesWhatTheReferenceDoes) {
  for (const WeightFormat format :
       {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kF16,
        WeightFormat::kInt8, WeightFormat::kInt4}) {
    packed_.clear();
    experts_.clear();
    Open(format);
    EXPECT_EQ(experts_[0]->size_bytes(),
              static_cast<size_t>(backend_->expert_bytes()));
    const auto reference =
        MakeGroupedFfnReference({kHidden, kIntermediate, kMaxRows,
                                 Activation::kSiluGlu, IsQuantized(format)});
    for (const DType type : {DType::kF32, DType::kBF16, DType::kInt8}) {
      SCOPED_TRACE(testing::Message()
                   << DTypeName(type) << " x " << WeightFormatName(format));
      const std::vector<uint32_t> rows = {5, 0, 20};
      const Batch batch(ffn(), Experts(), rows, type, 9);
      ASSERT_TRUE(ffn().Run(batch.rows()).ok());
      const Batch expected(*reference, {&packed_[0], &packed_[1], &packed_[2]},
                           rows, type, 9);
      ASSERT_TRUE(reference->Run(expected.rows()).ok());
      const std::vector<float> y = batch.YAsF32();
      const std::vector<float> want = expected.YAsF32();
      // The reference takes quantized experts' rows in codes, the device in
      // bf16.
      const float tolerance = IsQuantized(format) ? 6e-2f : 2e-2f;
      for (size_t i = 0; i < y.size(); ++i) {
        ASSERT_NEAR(y[i], want[i], tolerance) << "element " << i;
      }
    }
  }
}

TEST_F(CudaBackendTest, TensorsGiveWhatPackedExpertsGive) {
  for (const auto& [type, format] :
       {std::pair(DType::kBF16, WeightFormat::kBF16),
        std::pair(DType::kF32, WeightFormat::kBF16),
        std::pair(DType::kF32, WeightFormat::kF32),
        std::pair(DType::kF16, WeightFormat::kF16)}) {
    SCOPED_TRACE(testing::Message()
                 << DTypeName(type) << " as " << WeightFormatName(format));
    Open(format);
    ASSERT_TRUE(backend_->takes_tensors());
    const TypedValues gate = RandomTensor(kIntermediate, kHidden, type, 1);
    const TypedValues up = RandomTensor(kIntermediate, kHidden, type, 2);
    const TypedValues down = RandomTensor(kHidden, kIntermediate, type, 3);
    const ExpertTensors tensors = {gate.View(kIntermediate, kHidden),
                                   up.View(kIntermediate, kHidden),
                                   down.View(kHidden, kIntermediate)};
    const auto pack = [format = format](const TensorView& tensor) {
      return *PackedMatrix::Pack(tensor, format);
    };
    const auto from_tensors = backend_->Load(tensors);
    const auto from_packed = backend_->Load(
        PackedExpert(pack(tensors.gate_proj), pack(tensors.up_proj),
                     pack(tensors.down_proj)));
    ASSERT_TRUE(from_tensors.ok()) << from_tensors.status();
    ASSERT_TRUE(from_packed.ok()) << from_packed.status();
    const Batch one(ffn(), {from_tensors->get()}, {7}, DType::kBF16, 5);
    const Batch other(ffn(), {from_packed->get()}, {7}, DType::kBF16, 5);
    ASSERT_TRUE(ffn().Run(one.rows()).ok());
    ASSERT_TRUE(ffn().Run(other.rows()).ok());
    EXPECT_EQ(one.Y(), other.Y());
  }
}

TEST_F(CudaBackendTest, TwoBatchesAtATimeGiveTheSameBits) {
  Open(WeightFormat::kBF16);
  ASSERT_EQ(ffn().max_started(), 2);
  for (const DType type : {DType::kF32, DType::kBF16, DType::kInt8}) {
    const Batch one(ffn(), Experts(), {1, 30, 3}, type, 1);
    const Batch two(ffn(), {experts_[2].get()}, {17}, DType::kBF16, 2);
    const Batch none(ffn(), {}, {}, type, 3);
    ASSERT_TRUE(ffn().Run(one.rows()).ok());
    ASSERT_TRUE(ffn().Run(two.rows()).ok());
    const std::string y_one = one.Y();
    const std::string y_two = two.Y();
    std::memset(one.y.get(), 0xab, one.bytes);
    std::memset(two.y.get(), 0xab, two.bytes);
    ASSERT_TRUE(ffn().Start(one.rows()).ok());
    ASSERT_TRUE(ffn().Start(two.rows()).ok());
    ASSERT_TRUE(ffn().Finish().ok());
    EXPECT_EQ(one.Y(), y_one);
    ASSERT_TRUE(ffn().Start(none.rows()).ok());
    ASSERT_TRUE(ffn().Finish().ok());
    EXPECT_EQ(two.Y(), y_two);
    ASSERT_TRUE(ffn().Finish().ok());
  }
}

TEST_F(CudaBackendTest, WaitingLeavesNoErrorBehind) {
  Open(WeightFormat::kBF16);
  const Batch batch(ffn(), {experts_[0].get()}, {4}, DType::kBF16, 1);
  ASSERT_TRUE(ffn().Run(batch.rows()).ok());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
}  // namespace expertmesh::expert
