// What a device computes, real or emulated.

#include "expert_service/kernels/cuda/cuda_backend.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
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

// Sums of random rows, and a few rows alone.
struct RandomReduction {
  RandomReduction(uint32_t num_rows, uint32_t num_sums, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<std::vector<uint32_t>> rows_of(num_sums);
    for (uint32_t row = 0; row < num_rows; ++row) {
      // Every sum has a row.
      const uint32_t sum = row < num_sums ? row : random() % (num_sums + 1);
      (sum == num_sums ? lone : rows_of[sum]).push_back(row);
    }
    for (const auto& rows_of_sum : rows_of) {
      for (const uint32_t row : rows_of_sum) {
        rows.push_back(row);
        weights.push_back(static_cast<float>(random() % 1000) / 999.0f);
      }
      offsets.push_back(static_cast<uint32_t>(rows.size()));
    }
  }
  RowReduction view() const { return {offsets, rows, weights, lone}; }

  std::vector<uint32_t> offsets = {0}, rows, lone;
  std::vector<float> weights;
};

// What the host makes of a batch's outputs.
std::string AddedUp(const Batch& batch, const RowReduction& reduction) {
  const size_t row_bytes = RowBytes(batch.dtype, kHidden);
  std::string out;
  for (const uint32_t row : reduction.lone_rows) {
    out += batch.Y().substr(row * row_bytes, row_bytes);
  }
  out.resize(RowReduction::SumsAt(out.size()));
  for (size_t s = 0; s < reduction.num_sums(); ++s) {
    std::vector<float> sum(kHidden);
    for (uint32_t i = reduction.sum_offsets[s];
         i < reduction.sum_offsets[s + 1]; ++i) {
      AddScaledRow(reduction.sum_weights[i],
                   batch.y.get() + reduction.sum_rows[i] * row_bytes,
                   batch.dtype, 0, kHidden, sum.data());
    }
    out.append(reinterpret_cast<const char*>(sum.data()), 4 * kHidden);
  }
  return out;
}

TEST_F(CudaBackendTest, AddsRowsUpAsTheHostDoes) {
  ASSERT_TRUE((Open(WeightFormat::kBF16), ffn().adds_rows()));
  for (const DType type : {DType::kF32, DType::kBF16, DType::kInt8}) {
    for (const auto& rows : std::vector<std::vector<uint32_t>>{
             {4, 0, 7}, {4, 1, 5}, {2, 40, 6}, {1, 0, 0}}) {
      SCOPED_TRACE(testing::Message()
                   << DTypeName(type) << ", " << rows[1] << " rows of one");
      const Batch plain(ffn(), Experts(), rows, type, 3);
      ASSERT_TRUE(ffn().Run(plain.rows()).ok());
      const uint32_t num_rows = plain.offsets.back();
      const RandomReduction random(num_rows, (num_rows + 1) / 2, num_rows);
      const RowReduction reduction = random.view();
      const Batch reduced(ffn(), Experts(), rows, type, 3);
      GroupedRows call = reduced.rows();
      call.reduction = &reduction;
      ASSERT_TRUE(ffn().Run(call).ok());
      const std::string expected = AddedUp(plain, reduction);
      const size_t lone = random.lone.size() * RowBytes(type, kHidden);
      const size_t sums = RowReduction::SumsAt(lone);
      const std::string got(reinterpret_cast<const char*>(reduced.y.get()),
                            expected.size());
      EXPECT_EQ(got.substr(0, lone), expected.substr(0, lone));
      EXPECT_EQ(got.substr(sums), expected.substr(sums));
    }
  }
}

// Batches of like size are queued as one graph, with the same memory.
TEST_F(CudaBackendTest, RepeatedFormsGiveTheSameBits) {
  prometheus::Histogram::BucketBoundaries buckets = {0.001, 1.0};
  prometheus::Histogram kernels{buckets}, in{buckets}, out{buckets},
      rows{buckets};
  prometheus::Counter graphs;
  metrics_ = {&kernels, &in, &out, &graphs, &rows};
  Open(WeightFormat::kInt8);
  const Batch large(ffn(), Experts(), {3, 40, 3}, DType::kBF16, 4);
  ASSERT_TRUE(ffn().Run(large.rows()).ok());
  EXPECT_EQ(graphs.Value(), 0.0);
  const size_t row_bytes = RowBytes(DType::kBF16, kHidden);
  const RowBuffer x = ffn().NewRowBuffer(large.bytes);
  const RowBuffer y = ffn().NewRowBuffer(large.bytes);
  int count = 0;
  for (uint32_t first = 0; first < 40; first += 5) {
    for (const uint32_t of_two : {1u, 2u, 3u}) {
      std::memcpy(x.get(), large.x.get() + (3 + first) * row_bytes,
                  of_two * row_bytes);
      const LoadedExpert* const experts[] = {experts_[1].get()};
      const uint32_t offsets[] = {0, of_two};
      ASSERT_TRUE(
          ffn().Run({experts, offsets, DType::kBF16, x.get(), y.get()}).ok());
      ++count;
      EXPECT_EQ(std::memcmp(y.get(), large.y.get() + (3 + first) * row_bytes,
                            of_two * row_bytes),
                0)
          << "rows from " << first << ", " << of_two;
    }
  }
  // But the first of each form, in each of the two slots.
  EXPECT_EQ(graphs.Value(), count - 2 * 3);
  const auto observed = [](const prometheus::Histogram& histogram) {
    return histogram.Collect().histogram.sample_count;
  };
  EXPECT_EQ(observed(kernels), static_cast<uint64_t>(count + 1));
  EXPECT_EQ(observed(in), observed(kernels));
  EXPECT_EQ(observed(out), observed(kernels));
  EXPECT_EQ(rows.Collect().histogram.sample_sum, 46 + 8 * 6.0);
}

// Few rows go through a kernel, more through cuBLAS, whose rounding differs.
TEST_F(CudaBackendTest, FastIsCloseToTheReference) {
  is_fast_ = true;
  Open(WeightFormat::kBF16);
  if (backend_ == nullptr) return;  // no cuBLAS, as the failure says
  const auto reference = MakeGroupedFfnReference(
      {kHidden, kIntermediate, kMaxRows, Activation::kSiluGlu, false});
  for (const DType type : {DType::kF32, DType::kBF16, DType::kInt8}) {
    for (const auto& rows : std::vector<std::vector<uint32_t>>{
             {1, 2, 3}, {4, 0, 5}, {30, 1, 17}, {0, 48, 0}, {0, 0, 0}}) {
      SCOPED_TRACE(testing::Message() << DTypeName(type) << ", " << rows[0]
                                      << " rows of the first");
      const Batch batch(ffn(), Experts(), rows, type, 9);
      ASSERT_TRUE(ffn().Run(batch.rows()).ok());
      const Batch expected(*reference, {&packed_[0], &packed_[1], &packed_[2]},
                           rows, type, 9);
      ASSERT_TRUE(reference->Run(expected.rows()).ok());
      const std::vector<float> y = batch.YAsF32();
      const std::vector<float> want = expected.YAsF32();
      for (size_t i = 0; i < y.size(); ++i) {
        ASSERT_NEAR(y[i], want[i], 4e-2f) << "element " << i;
      }
    }
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
