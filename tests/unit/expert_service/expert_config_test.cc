#include "expert_service/expert_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace expertmesh::expert {
namespace {

using ::testing::StartsWith;

TEST(ExpertConfig, DefaultsAreValid) {
  ExpertConfig config;
  EXPECT_FALSE(CheckExpertConfig(config).ok());  // whose experts?
  config.model = "m";
  EXPECT_TRUE(CheckExpertConfig(config).ok());
  EXPECT_EQ(ExpertWeightFormat(ExpertConfig()), std::nullopt);
}

TEST(ExpertConfig, FlagsSetEveryKnob) {
  ExpertConfig config;
  CLI::App app;
  SetupCommandLine(app, "expertmesh-expert");
  AddExpertOptions(app, &config);
  const std::vector<const char*> arguments = {"expertmesh-expert",
                                              "--model=m",
                                              "--experts=1-2",
                                              "--listen=[::1]:1",
                                              "--metrics-listen=a:2",
                                              "--ready-file=r",
                                              "--exit-with-parent",
                                              "--expert-dtype=bf16",
                                              "--threads=3",
                                              "--max-batch-rows=4",
                                              "--queue-rows=5",
                                              "--drain-timeout=0.5",
                                              "--memory-budget=3MiB",
                                              "--max-streams=6",
                                              "--max-bytes-in-flight=2KiB",
                                              "--weights-from=a:1,[::1]:2",
                                              "--weights-cache=w",
                                              "--weights-rate-limit=5MB",
                                              "--device=cuda:1",
                                              "--numerics=fast",
                                              "--device-memory-fraction=0.5"};
  ASSERT_EQ(ParseCommandLine(app, static_cast<int>(arguments.size()),
                             arguments.data()),
            std::nullopt);
  EXPECT_EQ(config.model, "m");
  EXPECT_EQ(config.experts, "1-2");
  EXPECT_EQ(config.listen, "[::1]:1");
  EXPECT_EQ(config.metrics_listen, "a:2");
  EXPECT_EQ(config.ready_file, "r");
  EXPECT_TRUE(config.exit_with_parent);
  EXPECT_EQ(ExpertWeightFormat(config), WeightFormat::kBF16);
  EXPECT_EQ(config.threads, 3);
  EXPECT_EQ(config.max_batch_rows, 4);
  EXPECT_EQ(config.queue_rows, 5);
  EXPECT_EQ(config.memory_budget_bytes, 3u << 20);
  EXPECT_EQ(config.max_streams, 6);
  EXPECT_EQ(WeightPeerAddresses(config),
            (std::vector<std::string>{"a:1", "[::1]:2"}));
  EXPECT_EQ(config.weights_cache, "w");
  EXPECT_EQ(config.weights_rate_limit_bytes_per_s, 5'000'000u);
  EXPECT_EQ(config.max_bytes_in_flight, 2048u);
  EXPECT_EQ(config.drain_timeout_seconds, 0.5);
  EXPECT_EQ(ExpertDeviceWish(config).cuda_index, 1);
  EXPECT_EQ(config.device_memory_fraction, 0.5);
  EXPECT_EQ(ExpertNumerics(config), Numerics::kFast);
  EXPECT_TRUE(CheckExpertConfig(config).ok());
}

TEST(ExpertConfig, RefusalsNameTheFlag) {
  const std::vector<std::pair<std::string, std::function<void(ExpertConfig&)>>>
      cases = {
          {"--listen", [](ExpertConfig& c) { c.listen = "localhost"; }},
          {"--metrics-listen",
           [](ExpertConfig& c) { c.metrics_listen = ":80"; }},
          {"--expert-dtype", [](ExpertConfig& c) { c.expert_dtype = "f16"; }},
          {"--threads", [](ExpertConfig& c) { c.threads = -1; }},
          {"--max-batch-rows", [](ExpertConfig& c) { c.max_batch_rows = 0; }},
          {"--experts", [](ExpertConfig& c) { c.experts = "none"; }},
          {"--weights-from", [](ExpertConfig& c) { c.weights_from = "a:1,b"; }},
          {"--weights-cache", [](ExpertConfig& c) { c.weights_from = "a:1"; }},
          {"--max-streams", [](ExpertConfig& c) { c.max_streams = 0; }},
          {"--max-bytes-in-flight",
           [](ExpertConfig& c) { c.max_bytes_in_flight = 0; }},
          {"--queue-rows", [](ExpertConfig& c) { c.queue_rows = 0; }},
          {"--device", [](ExpertConfig& c) { c.device = "gpu"; }},
          {"--numerics", [](ExpertConfig& c) { c.numerics = "exact"; }},
          {"--device-memory-fraction",
           [](ExpertConfig& c) { c.device_memory_fraction = 0; }},
          {"--device-memory-fraction",
           [](ExpertConfig& c) { c.device_memory_fraction = 1.1; }},
          {"--drain-timeout",
           [](ExpertConfig& c) {
             c.drain_timeout_seconds = std::numeric_limits<double>::quiet_NaN();
           }},
      };
  for (const auto& [flag, change] : cases) {
    ExpertConfig config;
    config.model = "m";
    change(config);
    const absl::Status status = CheckExpertConfig(config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << flag;
    EXPECT_THAT(std::string(status.message()), StartsWith(flag + ": "));
  }
}

}  // namespace
}  // namespace expertmesh::expert
