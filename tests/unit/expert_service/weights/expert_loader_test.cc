#include "expert_service/weights/expert_loader.h"

#include <cstring>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/checkpoint/memory_plan.h"
#include "tests/support/safetensors_writer.h"

namespace expertmesh::expert {
namespace {

using expertmesh::testing::MakeCheckpoint;
using expertmesh::testing::TempFolder;
using expertmesh::testing::TinyConfig;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::unique_ptr<Checkpoint> OpenOrFail(const std::string& directory) {
  auto checkpoint = Checkpoint::Open(directory);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

std::unique_ptr<Checkpoint> OpenGolden(const std::string& name) {
  return OpenOrFail(std::string(EXPERTMESH_SOURCE_DIR) + "/tests/golden/" +
                    name);
}

float AsF32(const std::byte* at, DType dtype) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return dtype == DType::kBF16 ? ToF32(BF16{bits}) : F16ToF32(bits);
}

// Element [n, k] of a packed matrix, by the layout of services/linalg/gemm.h.
float PackedElement(const PackedMatrix& packed, int64_t n, int64_t k) {
  const std::byte* panel = packed.panel(n / kPanelWidth);
  const int64_t column = n % kPanelWidth;
  const int64_t index = packed.format() == WeightFormat::kF32
                            ? k * kPanelWidth + column
                            : (k / 2 * kPanelWidth + column) * 2 + k % 2;
  const DType dtype = packed.format() == WeightFormat::kF32    ? DType::kF32
                      : packed.format() == WeightFormat::kBF16 ? DType::kBF16
                                                               : DType::kF16;
  return AsF32(panel + index * DTypeBytes(dtype), dtype);
}

// The packed matrix holds the checkpoint's tensor, rounded to its own type.
void ExpectHolds(const PackedMatrix& packed, const Checkpoint& checkpoint,
                 const std::string& name, int64_t n, int64_t k) {
  const auto tensor = checkpoint.Tensor(name, {n, k});
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  ASSERT_EQ(packed.n(), n);
  ASSERT_EQ(packed.k(), k);
  for (int64_t i = 0; i < n * k; ++i) {
    float want =
        AsF32(tensor->data + i * DTypeBytes(tensor->dtype), tensor->dtype);
    if (packed.format() == WeightFormat::kBF16) want = ToF32(ToBF16(want));
    ASSERT_EQ(PackedElement(packed, i / k, i % k), want)
        << name << " [" << i / k << ", " << i % k << "]";
  }
}

void ExpectHoldsExpert(const LoadedExpert& loaded, const Checkpoint& checkpoint,
                       ExpertSlot slot) {
  const auto& expert = static_cast<const PackedExpert&>(loaded);
  const ExpertTensorNames names =
      checkpoint.family().ExpertNames(slot.layer, slot.expert);
  const int64_t hidden = checkpoint.config().hidden_size;
  const int64_t intermediate = checkpoint.config().expert_intermediate_size;
  ExpectHolds(expert.gate_proj, checkpoint, names.gate_proj, intermediate,
              hidden);
  ExpectHolds(expert.up_proj, checkpoint, names.up_proj, intermediate, hidden);
  ExpectHolds(expert.down_proj, checkpoint, names.down_proj, hidden,
              intermediate);
}

TEST(ExpertLoaderTest, HoldsTheExpertsAskedForAndNoOthers) {
  const auto checkpoint = OpenGolden("qwen2_moe");  // layer 1 is dense
  ASSERT_NE(checkpoint, nullptr);
  const auto weights = LoadExperts(*checkpoint, {.experts = {2, 5}});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_THAT((*weights)->slots(),
              ElementsAre(ExpertSlot{0, 2}, ExpertSlot{0, 5}, ExpertSlot{2, 2},
                          ExpertSlot{2, 5}));
  size_t bytes = 0;
  for (const ExpertSlot slot : (*weights)->slots()) {
    const LoadedExpert* expert = (*weights)->Find(slot.layer, slot.expert);
    ASSERT_NE(expert, nullptr);
    ExpectHoldsExpert(*expert, *checkpoint, slot);
    bytes += expert->size_bytes();
  }
  EXPECT_EQ((*weights)->size_bytes(), bytes);
  for (const ExpertSlot absent :
       {ExpertSlot{0, 3}, {1, 2}, {-1, 2}, {3, 2}, {0, -1}, {0, 8}}) {
    EXPECT_EQ((*weights)->Find(absent.layer, absent.expert), nullptr);
  }
}

TEST(ExpertLoaderTest, KeepsOrConvertsTheType) {
  for (const char* name : {"qwen3_moe", "qwen3_moe_bf16"}) {
    const auto checkpoint = OpenGolden(name);
    ASSERT_NE(checkpoint, nullptr);
    for (const std::optional<WeightFormat> format :
         {std::optional<WeightFormat>(), std::optional(WeightFormat::kF32),
          std::optional(WeightFormat::kBF16)}) {
      const auto expert = LoadExpert(*checkpoint, {1, 3}, format);
      ASSERT_TRUE(expert.ok()) << expert.status();
      EXPECT_EQ(expert->gate_proj.format(),
                format.value_or(FormatOf(checkpoint->config().dtype)));
      ExpectHoldsExpert(*expert, *checkpoint, {1, 3});
    }
  }
}

TEST(ExpertLoaderTest, KeepsAndWidensF16) {
  const TempFolder folder;
  MakeCheckpoint(TinyConfig("olmoe"), DType::kF16).Write(folder.path());
  const auto checkpoint = OpenOrFail(folder.path());
  ASSERT_NE(checkpoint, nullptr);
  const auto kept = LoadExpert(*checkpoint, {0, 7}, std::nullopt);
  const auto widened = LoadExpert(*checkpoint, {0, 7}, WeightFormat::kF32);
  ASSERT_TRUE(kept.ok() && widened.ok());
  EXPECT_EQ(kept->down_proj.format(), WeightFormat::kF16);
  EXPECT_EQ(widened->down_proj.format(), WeightFormat::kF32);
  ExpectHoldsExpert(*kept, *checkpoint, {0, 7});
  ExpectHoldsExpert(*widened, *checkpoint, {0, 7});
}

TEST(ExpertLoaderTest, QuantizesAndSaysWhichTensorCannotBe) {
  const auto checkpoint = OpenGolden("qwen3_moe_bf16");
  ASSERT_NE(checkpoint, nullptr);
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    const auto expert = LoadExpert(*checkpoint, {0, 1}, format);
    ASSERT_TRUE(expert.ok()) << expert.status();
    EXPECT_EQ(expert->down_proj.format(), format);
    EXPECT_EQ(expert->size_bytes(),
              static_cast<size_t>(ExpertBytes(checkpoint->config(), format)));
  }
  const TempFolder folder;
  testing::CheckpointParts parts = MakeCheckpoint(TinyConfig("olmoe"));
  const std::string name = "model.layers.0.mlp.experts.7.up_proj.weight";
  const float infinite = std::numeric_limits<float>::infinity();
  std::memcpy(parts.Tensor(name).bytes.data() + 8, &infinite, sizeof(infinite));
  parts.Write(folder.path());
  const auto broken = OpenOrFail(folder.path());
  ASSERT_NE(broken, nullptr);
  const auto expert = LoadExpert(*broken, {0, 7}, WeightFormat::kInt8);
  EXPECT_EQ(expert.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(expert.status().message(), ::testing::HasSubstr(name));
}

TEST(ExpertLoaderTest, ThreadsLoadTheSameAndReportEachSlot) {
  const auto checkpoint = OpenGolden("mixtral_sharded");
  ASSERT_NE(checkpoint, nullptr);
  WorkerPool pool(3);
  std::vector<std::pair<int64_t, int64_t>> reports;
  ExpertLoadOptions options;
  options.experts = {0, 1, 2, 3, 4, 5, 6, 7};
  options.pool = &pool;
  options.progress = [&](int64_t loaded, int64_t total) {
    reports.emplace_back(loaded, total);
  };
  const auto weights = LoadExperts(*checkpoint, options);
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_EQ(reports.size(), 16u);
  for (int64_t i = 0; i < 16; ++i) {
    EXPECT_EQ(reports[i], std::pair(i + 1, int64_t{16}));
  }
  for (const ExpertSlot slot : (*weights)->slots()) {
    ExpectHoldsExpert(*(*weights)->Find(slot.layer, slot.expert), *checkpoint,
                      slot);
  }
}

TEST(ExpertLoaderTest, RefusesUnknownAndRepeatedExperts) {
  const auto checkpoint = OpenGolden("mixtral");
  ASSERT_NE(checkpoint, nullptr);
  for (const std::vector<int64_t>& experts :
       {std::vector<int64_t>{8}, {-1}, {1, 1}}) {
    EXPECT_EQ(LoadExperts(*checkpoint, {.experts = experts}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(ExpertLoaderTest, RefusesAnExpertOfMixedTypesUnlessConverted) {
  const TempFolder folder;
  auto parts = MakeCheckpoint(TinyConfig("olmoe"));
  const std::string name = "model.layers.1.mlp.experts.4.up_proj.weight";
  auto& tensor = parts.Tensor(name);
  tensor.dtype = "BF16";
  tensor.bytes.resize(tensor.bytes.size() / 2);
  parts.Write(folder.path());
  const auto checkpoint = OpenOrFail(folder.path());
  ASSERT_NE(checkpoint, nullptr);
  WorkerPool pool(2);
  int64_t loaded = 0;
  const auto weights = LoadExperts(
      *checkpoint, {.experts = {3, 4},
                    .pool = &pool,
                    .progress = [&](int64_t done, int64_t) { loaded = done; }});
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(weights.status().message()),
              HasSubstr(folder.File("model.safetensors") + ": tensor '" + name +
                        "' is bf16, but '"));
  EXPECT_EQ(loaded, 0) << "found before anything is loaded";
  EXPECT_TRUE(LoadExperts(*checkpoint,
                          {.experts = {3, 4}, .format = WeightFormat::kF32})
                  .ok());
}

}  // namespace
}  // namespace expertmesh::expert
