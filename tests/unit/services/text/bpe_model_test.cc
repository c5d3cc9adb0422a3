#include "services/text/bpe_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <thread>

#include "services/text/utf8.h"
#include "tests/unit/services/text/tokenizer_test_util.h"

namespace expertmesh::text {
namespace {

using nlohmann::json;
using testing::ElementsAre;

std::unique_ptr<BpeModel> Build(const json& model) {
  const json root = {{"model", model}};
  auto built = BpeModel::Build(ConfigNode(&root, ""));
  EXPECT_TRUE(built.ok()) << built.status();
  return built.ok() ? *std::move(built) : nullptr;
}

std::vector<int32_t> Encode(const BpeModel& model, absl::string_view piece) {
  std::vector<int32_t> ids;
  model.Encode(piece, &ids);
  return ids;
}

TEST(BpeModelTest, MergesByRankThenLeftmost) {
  json config = ModelOf({"a", "b", "c", "bc", "ab", "aa"});
  config["merges"] = {"b c", "a b", "a a"};
  const auto model = Build(config);
  EXPECT_THAT(Encode(*model, "abc"), ElementsAre(0, 3));
  EXPECT_THAT(Encode(*model, "abab"), ElementsAre(4, 4));
  EXPECT_THAT(Encode(*model, "aaa"), ElementsAre(5, 0));
}

TEST(BpeModelTest, IgnoreMergesTakesWholePieces) {
  json config = ModelOf({"a", "b", "ab"});
  EXPECT_THAT(Encode(*Build(config), "ab"), ElementsAre(0, 1));
  config["ignore_merges"] = true;
  EXPECT_THAT(Encode(*Build(config), "ab"), ElementsAre(2));
}

TEST(BpeModelTest, UnknownCharacters) {
  json config = ModelOf({"a", "<unk>"});
  EXPECT_THAT(Encode(*Build(config), "axya"), ElementsAre(0, 0));
  config["unk_token"] = "<unk>";
  EXPECT_THAT(Encode(*Build(config), "axya"), ElementsAre(0, 1, 1, 0));
  config["fuse_unk"] = true;
  EXPECT_THAT(Encode(*Build(config), "axya"), ElementsAre(0, 1, 0));
}

TEST(BpeModelTest, ByteFallback) {
  json config = ModelOf({"a", "<unk>", "<0xC3>", "<0xA9>"});
  config["unk_token"] = "<unk>";
  config["byte_fallback"] = true;
  const auto model = Build(config);
  EXPECT_THAT(Encode(*model, "aé"), ElementsAre(0, 2, 3));
  EXPECT_THAT(Encode(*model, "ab"), ElementsAre(0, 1));
}

TEST(BpeModelTest, Affixes) {
  json config = ModelOf({"a", "##b", "##c</w>", "a##b", "ab", "abc</w>"});
  config["continuing_subword_prefix"] = "##";
  config["end_of_word_suffix"] = "</w>";
  config["merges"] = {"a ##b", "ab ##c</w>"};
  EXPECT_THAT(Encode(*Build(config), "abc"), ElementsAre(5));
  EXPECT_THAT(Encode(*Build(config), "ab"), ElementsAre(0))
      << "##b</w> is not in the vocabulary";
}

// Merges by their definition: find the best pair, merge it, start over.
std::vector<int32_t> SlowEncode(const json& config, absl::string_view text) {
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  for (const json& merge : config["merges"]) {
    ranks.emplace(std::make_pair(merge[0], merge[1]), ranks.size());
  }
  std::vector<std::string> parts;
  for (size_t offset = 0; offset < text.size();) {
    const size_t begin = offset;
    NextCharacter(text, &offset);
    const std::string character(text.substr(begin, offset - begin));
    // Unknown characters are nothing, not even a barrier.
    if (config["vocab"].contains(character)) parts.push_back(character);
  }
  while (true) {
    size_t best = parts.size();
    size_t best_rank = ranks.size();
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = ranks.find({parts[i], parts[i + 1]});
      if (found == ranks.end() || found->second >= best_rank) continue;
      best = i;
      best_rank = found->second;
    }
    if (best == parts.size()) break;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
  std::vector<int32_t> ids;
  for (const std::string& part : parts) ids.push_back(config["vocab"][part]);
  return ids;
}

TEST(BpeModelTest, LongPiecesEqualTheDefinition) {
  // Long pieces are cut where no merge joins; short ones are not.
  const json config = ReadGolden("llama_spm", "tokenizer.json")["model"];
  json plain = config;
  plain["byte_fallback"] = false;
  plain["unk_token"] = nullptr;
  const auto model = Build(plain);
  const std::vector<std::string> units = {"▁the", "▁of", "and",    "ing", "▁",
                                          "▁▁",   "e",   "t",      "中",  "é",
                                          "1",    ",",   "▁speak", "her", "\n"};
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::string text;
    for (int i = 0; i < 60; ++i) text += units[random() % units.size()];
    ASSERT_EQ(Encode(*model, text), SlowEncode(plain, text)) << text;
  }
}

TEST(BpeModelTest, ThreadsShareTheCache) {
  const auto model = Build(ReadGolden("gpt2", "tokenizer.json")["model"]);
  std::vector<std::string> pieces;
  for (int i = 0; i < 500; ++i) pieces.push_back("the" + std::to_string(i));
  std::vector<std::vector<int32_t>> expected;
  const auto fresh = Build(ReadGolden("gpt2", "tokenizer.json")["model"]);
  for (const auto& piece : pieces) expected.push_back(Encode(*fresh, piece));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (size_t i = 0; i < pieces.size(); ++i) {
        EXPECT_EQ(Encode(*model, pieces[i]), expected[i]);
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST(PieceCacheTest, IsBounded) {
  PieceCache cache;
  const int32_t id = 5;
  for (size_t i = 0; i < 3 * PieceCache::kMaxPieces; ++i) {
    cache.Insert(std::to_string(i), &id, &id + 1);
    if (i % 1000 == 0) {
      ASSERT_LE(cache.size(), PieceCache::kMaxPieces);
    }
  }
  EXPECT_LE(cache.size(), PieceCache::kMaxPieces);
  std::vector<int32_t> ids;
  cache.Insert("word", &id, &id + 1);
  EXPECT_TRUE(cache.Find("word", &ids));
  EXPECT_THAT(ids, ElementsAre(5));
  const std::string long_piece(PieceCache::kMaxPieceBytes + 1, 'x');
  cache.Insert(long_piece, &id, &id + 1);
  EXPECT_FALSE(cache.Find(long_piece, &ids));
}

}  // namespace
}  // namespace expertmesh::text
