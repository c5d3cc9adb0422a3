#include "services/cli/bench_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

namespace expertmesh {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

BenchSettings Settings() {
  BenchSettings settings;
  settings.server = "host:1";
  settings.model.set_name("demo");
  settings.model.set_numerics_id("avx512");
  settings.requests.prompt_tokens = *LengthDistribution::Parse("uniform:4-8");
  settings.requests.seed = 7;
  settings.warmup_requests = 2;
  return settings;
}

LevelReport Level() {
  LevelReport level;
  level.load = {.concurrency = 8, .max_requests = 40};
  level.begun = absl::UnixEpoch();
  BenchSummary& summary = level.summary;
  summary.seconds = 2;
  summary.completed = 39;
  summary.failed = 1;
  summary.failures["UNAVAILABLE"] = {.count = 1, .message = "gone"};
  summary.prompt_tokens = 200;
  summary.output_tokens = 400;
  summary.first_token = Quantiles::Of({0.010, 0.030});
  summary.routing.primary = 800;
  return level;
}

TEST(AlignedText, AlignsAllButTheFirstColumnToTheRight) {
  EXPECT_EQ(AlignedText({{"a", "bb", "c"}, {"long", "1", "22"}}),
            "a     bb   c\n"
            "long   1  22\n");
}

TEST(LevelText, HasCountsRatesLatenciesAndFailures) {
  EXPECT_EQ(LevelText(Level()),
            "concurrency 8: 40 requests in 2.00 s, 1 failed\n"
            "  throughput  requests  prompt tokens  output tokens  all tokens\n"
            "  in all            39            200            400         600\n"
            "  a second       19.50          100.0          200.0       300.0\n"
            "  latency, ms        mean    p50    p90    p95    p99    max\n"
            "  to first token    20.00  20.00  28.00  29.00  29.80  30.00\n"
            "  between tokens        -      -      -      -      -      -\n"
            "  per output token      -      -      -      -      -      -\n"
            "  end to end            -      -      -      -      -      -\n"
            "  queued in server      -      -      -      -      -      -\n"
            "  rows: 800 primary, 0 replica, 0 waited, 0 rerouted, 0 dropped; "
            "gate mass kept 1.0000\n"
            "  failed: 1 with UNAVAILABLE (gone)\n");
}

TEST(LevelText, NamesWhatIsUnfinishedOrShort) {
  LevelReport level = Level();
  EXPECT_THAT(LevelText(level), Not(HasSubstr("unfinished")));
  level.summary.unfinished = 3;
  level.summary.cut_short = 2;
  EXPECT_THAT(LevelText(level), HasSubstr("unfinished: 3\n"));
  EXPECT_THAT(LevelText(level), HasSubstr("than asked for: 2 requests\n"));
}

TEST(ComparisonText, HasALineForEachLevel) {
  const std::string text = ComparisonText({Level(), Level()});
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_THAT(text, HasSubstr("concurrency 8"));
  EXPECT_THAT(text, HasSubstr("20.00 / 29.80"));
}

TEST(SettingsText, NamesModelAndRequests) {
  BenchSettings settings = Settings();
  EXPECT_THAT(SettingsText(settings),
              HasSubstr("prompts: uniform:4-8 random tokens; "));
  EXPECT_THAT(SettingsText(settings), HasSubstr("numerics avx512"));
  settings.requests.shared_prefix_tokens = 5;
  EXPECT_THAT(SettingsText(settings), HasSubstr(" after 5 shared ones"));
  settings.texts_file = "texts";
  EXPECT_THAT(SettingsText(settings), HasSubstr("the texts of texts"));
}

TEST(LevelJson, IsOneLineWithEverything) {
  const std::string line = LevelJson(Settings(), Level());
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["load"]["concurrency"], 8);
  EXPECT_TRUE(json["load"]["request_rate"].is_null());
  EXPECT_EQ(json["settings"]["seed"], 7);
  EXPECT_EQ(json["settings"]["prompt_tokens"], "uniform:4-8");
  EXPECT_TRUE(json["settings"]["overflow_policy"].is_null());
  EXPECT_EQ(json["model"]["numerics_id"], "avx512");
  EXPECT_EQ(json["begun"], "1970-01-01T00:00:00+00:00");
  EXPECT_EQ(json["requests"]["sent"], 40);
  EXPECT_EQ(json["requests"]["failed"], 1);
  EXPECT_EQ(json["failures"]["UNAVAILABLE"]["message"], "gone");
  EXPECT_EQ(json["tokens"]["output"], 400);
  EXPECT_EQ(json["per_second"]["output_tokens"], 200.0);
  EXPECT_EQ(json["latency_seconds"]["time_to_first_token"]["max"], 0.03);
  EXPECT_EQ(json["latency_seconds"]["end_to_end"]["count"], 0);
  EXPECT_EQ(json["routing"]["primary"], 800);
}

TEST(LevelJson, NamesThePolicyAsTheFlagDoes) {
  BenchSettings settings = Settings();
  settings.requests.overflow_policy = v1::OVERFLOW_POLICY_NEXT_BEST;
  const auto json = nlohmann::json::parse(LevelJson(settings, Level()));
  EXPECT_EQ(json["settings"]["overflow_policy"], "next_best");
}

TEST(LevelJson, WritesAnInfiniteRateAsText) {
  LevelReport level = Level();
  level.load = {.request_rate = std::numeric_limits<double>::infinity()};
  const auto json = nlohmann::json::parse(LevelJson(Settings(), level));
  EXPECT_EQ(json["load"]["request_rate"], "inf");
}

}  // namespace
}  // namespace expertmesh
