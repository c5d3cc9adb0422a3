// The demo model's perplexity against the reference implementation's.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "services/text/tokenizer.h"
#include "tests/support/local_model.h"
#include "tests/support/sanitized.h"

namespace expertmesh::testing {
namespace {

constexpr int64_t kWindow = 256;
constexpr size_t kMaxWindows = 64;
const std::string kFolder = EXPERTMESH_SOURCE_DIR "/deploy/demo_model";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Sum over tokens 2, 3, … of -log p(token | those before it).
double NegativeLogLikelihood(const std::vector<float>& logits, int64_t vocab,
                             const std::vector<int32_t>& tokens) {
  double total = 0;
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    const float* row = &logits[i * vocab];
    const double most = *std::max_element(row, row + vocab);
    double sum = 0;
    for (int64_t v = 0; v < vocab; ++v) sum += std::exp(row[v] - most);
    total += most + std::log(sum) - row[tokens[i + 1]];
  }
  return total;
}

TEST(PerplexityTest, DemoModelOnPlays) {
  if (kSanitized) GTEST_SKIP() << "takes minutes; goldens run the same code";
  LocalModelOptions options;
  options.max_step_tokens = kWindow;
  options.max_context_tokens = kWindow;
  auto model = LocalModel::Load(kFolder, options);
  ASSERT_TRUE(model.ok()) << model.status();
  auto tokenizer = Tokenizer::Load(kFolder + "/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)
                       ->Encode(ReadFile(kFolder + "/heldout.txt"),
                                /*add_special_tokens=*/false);
  ASSERT_TRUE(ids.ok()) << ids.status();
  const auto report = nlohmann::json::parse(ReadFile(kFolder + "/report.json"));

  const size_t windows = std::min(kMaxWindows, ids->size() / kWindow);
  EXPECT_EQ(windows, report["windows_play"].get<size_t>());
  double total = 0;
  for (size_t window = 0; window < windows; ++window) {
    const std::vector<int32_t> tokens(ids->begin() + window * kWindow,
                                      ids->begin() + (window + 1) * kWindow);
    SingleSequence sequence(model->get());
    total += NegativeLogLikelihood(sequence.Append(tokens, kWindow),
                                   (*model)->config().vocab_size, tokens);
  }
  const double perplexity =
      std::exp(total / static_cast<double>(windows * (kWindow - 1)));
  const double expected = report["perplexity_play"];
  EXPECT_NEAR(perplexity, expected, 1e-3 * expected);
}

}  // namespace
}  // namespace expertmesh::testing
