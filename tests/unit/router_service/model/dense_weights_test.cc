// The router's weights are in memory once while they are loaded, and are the
// same however many threads pack them.

#include "router_service/model/dense_weights.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/peak_memory.h"
#include "tests/support/safetensors_writer.h"

namespace expertmesh::router {
namespace {

using expertmesh::testing::MakeCheckpoint;
using expertmesh::testing::PeakMemory;
using expertmesh::testing::TempFolder;
using expertmesh::testing::TinyConfig;

// A head that outweighs all else.
constexpr int64_t kVocab = 16384;
constexpr int64_t kHidden = 512;
constexpr int64_t kHeadBytes = kVocab * kHidden * 4;

class DenseWeightsTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    nlohmann::json config = TinyConfig("mixtral");
    config["hidden_size"] = kHidden;
    config["vocab_size"] = kVocab;
    config["tie_word_embeddings"] = GetParam();
    MakeCheckpoint(config).Write(folder_.path());
    auto checkpoint = Checkpoint::Open(folder_.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
  }

  const TempFolder folder_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_P(DenseWeightsTest, PeakIsLittleAboveThePackedBytes) {
  constexpr int64_t kSlackBytes = int64_t{8} << 20;
  WorkerPool pool(2);
  for (const std::optional<WeightFormat> format :
       {std::optional<WeightFormat>(), std::optional(WeightFormat::kInt8),
        std::optional(WeightFormat::kInt4)}) {
    const PeakMemory peak;
    const auto weights =
        DenseWeights::Load(*checkpoint_, {.format = format, .pool = &pool});
    ASSERT_TRUE(weights.ok()) << weights.status();
    if (!peak.RiseBytes()) GTEST_SKIP() << "no peaks are told here";
    const auto packed = static_cast<int64_t>(weights->size_bytes);
    const int64_t bound = packed + packed * 15 / 100 + kSlackBytes;
    EXPECT_LE(*peak.RiseBytes(), bound);
    ASSERT_GT(packed + kHeadBytes, bound);  // a head that stays is noticed
    EXPECT_GE(*peak.RiseBytes(), packed * 9 / 10);
  }
}

TEST_P(DenseWeightsTest, ThreadsChangeNoByte) {
  WorkerPool pool(3);
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    const auto alone = DenseWeights::Load(*checkpoint_, {.format = format});
    const auto spread =
        DenseWeights::Load(*checkpoint_, {.format = format, .pool = &pool});
    ASSERT_TRUE(alone.ok() && spread.ok());
    const std::pair<const PackedMatrix*, const PackedMatrix*> pairs[] = {
        {&alone->lm_head, &spread->lm_head},
        {&alone->layers[1].attention.qkv, &spread->layers[1].attention.qkv}};
    for (const auto& [a, b] : pairs) {
      ASSERT_EQ(a->size_bytes(), b->size_bytes());
      EXPECT_EQ(std::memcmp(a->panel(0), b->panel(0), a->size_bytes()), 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Heads, DenseWeightsTest, ::testing::Bool(),
                         [](const ::testing::TestParamInfo<bool>& info) {
                           return info.param ? "Tied" : "Apart";
                         });

}  // namespace
}  // namespace expertmesh::router
