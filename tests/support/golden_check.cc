#include "tests/support/golden_check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"

namespace expertmesh::testing {
namespace {

constexpr float kTolerance = 2e-4f;

// Collects the gate's choices, all chunks of a sequence one after the other.
class RoutingRecorder final : public router::RoutingObserver {
 public:
  void OnLayer(int64_t layer, int64_t, const router::Routing& routing,
               const router::DispatchPlan&) override {
    auto& ids = topk_ids[layer];
    ids.insert(ids.end(), routing.topk_ids.begin(), routing.topk_ids.end());
    auto& weights = topk_weights[layer];
    weights.insert(weights.end(), routing.topk_weights.begin(),
                   routing.topk_weights.end());
  }

  std::map<int64_t, std::vector<int32_t>> topk_ids;
  std::map<int64_t, std::vector<float>> topk_weights;
};

// Largest error in units of the tolerance, absolute and relative alike.
float WorstError(const std::vector<float>& actual,
                 const std::vector<float>& expected) {
  float worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const float bound = kTolerance + kTolerance * std::fabs(expected[i]);
    const float error = std::fabs(actual[i] - expected[i]) / bound;
    if (!(error <= worst)) worst = error;  // NaN counts as an error
  }
  return worst;
}

int32_t ArgMax(const float* logits, int64_t vocab) {
  return static_cast<int32_t>(std::max_element(logits, logits + vocab) -
                              logits);
}

}  // namespace

void ExpectEqualToGolden(LocalModel* model, const GoldenFile& golden,
                         int prompt_index) {
  const std::vector<int32_t>& prompt =
      golden.Ints(absl::StrCat("prompt_", prompt_index));
  const int64_t vocab = model->config().vocab_size;
  SingleSequence sequence(model);
  RoutingRecorder recorder;
  std::vector<float> logits =
      sequence.Append(prompt, model->options.max_step_tokens, &recorder);
  const std::vector<float>& expected =
      golden.Floats(absl::StrCat("logits_", prompt_index));
  ASSERT_EQ(logits.size(), expected.size());
  EXPECT_LE(WorstError(logits, expected), 1.0f);
  ASSERT_EQ(static_cast<int64_t>(recorder.topk_ids.size()),
            model->config().num_moe_layers());
  for (const auto& [layer, ids] : recorder.topk_ids) {
    const std::string suffix = absl::StrCat(prompt_index, "_", layer);
    EXPECT_EQ(ids, golden.Ints("topk_ids_" + suffix)) << "layer " << layer;
    EXPECT_LE(WorstError(recorder.topk_weights[layer],
                         golden.Floats("topk_weights_" + suffix)),
              1.0f)
        << "layer " << layer;
  }

  std::vector<int32_t> generated;
  const std::vector<int32_t>& greedy =
      golden.Ints(absl::StrCat("greedy_", prompt_index));
  int32_t next = ArgMax(&logits[(prompt.size() - 1) * vocab], vocab);
  while (generated.size() < greedy.size()) {
    generated.push_back(next);
    logits = sequence.Append({next}, 1);
    next = ArgMax(logits.data(), vocab);
  }
  EXPECT_EQ(generated, greedy);
}

void ExpectEqualToGolden(LocalModel* model, const std::string& directory) {
  const GoldenFile golden(directory + "/golden.safetensors");
  for (int prompt = 0; prompt < kNumGoldenPrompts; ++prompt) {
    SCOPED_TRACE(absl::StrCat("prompt ", prompt));
    ExpectEqualToGolden(model, golden, prompt);
  }
}

}  // namespace expertmesh::testing
