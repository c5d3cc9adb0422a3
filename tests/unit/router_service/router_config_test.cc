#include "router_service/router_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace expertmesh::router {
namespace {

using ::testing::ContainsRegex;

// The defaults, and what has none.
RouterConfig Config() {
  RouterConfig config;
  config.experts_at = {"127.0.0.1:50052"};
  return config;
}

TEST(RouterConfigTest, TypesOfRowsOnTheWire) {
  RouterConfig config = Config();
  EXPECT_EQ(WireDType(config, DType::kF16), DType::kF32);
  EXPECT_EQ(WireDType(config, DType::kBF16), DType::kBF16);
  config.wire_dtype = "f32";
  EXPECT_EQ(WireDType(config, DType::kBF16), DType::kF32);
  config.wire_dtype = "int8";
  EXPECT_TRUE(CheckRouterConfig(config).ok());
  EXPECT_EQ(WireDType(config, DType::kBF16), DType::kInt8);
  config.wire_dtype = "int4";
  EXPECT_THAT(CheckRouterConfig(config).ToString(),
              ContainsRegex("--wire-dtype is 'int4'.*int8"));
}

TEST(RouterConfigTest, DefaultsAreValid) {
  EXPECT_TRUE(CheckRouterConfig(Config()).ok());
}

TEST(RouterConfigTest, TypesOfKeysAndValues) {
  RouterConfig config = Config();
  EXPECT_EQ(RouterKvFormat(config, DType::kF32), KvFormat::kF32);
  EXPECT_EQ(RouterKvFormat(config, DType::kBF16), KvFormat::kBF16);
  config.kv_dtype = "int8";
  EXPECT_TRUE(CheckRouterConfig(config).ok());
  EXPECT_EQ(RouterKvFormat(config, DType::kBF16), KvFormat::kInt8);
  config.kv_dtype = "int4";
  EXPECT_THAT(CheckRouterConfig(config).ToString(),
              ContainsRegex("--kv-dtype is 'int4'.*int8"));
}

TEST(RouterConfigTest, CombineGroupsAreOfANumberOfExpertsOrAll) {
  RouterConfig config = Config();
  EXPECT_EQ(CombineGroupSize(config, 16), 1);
  for (const auto& [text, size] : std::vector<std::pair<std::string, int64_t>>{
           {"4", 4}, {"16", 16}, {"100", 16}, {"all", 16}}) {
    config.combine_group_size = text;
    EXPECT_TRUE(CheckRouterConfig(config).ok()) << text;
    EXPECT_EQ(CombineGroupSize(config, 16), size) << text;
  }
  for (const char* text :
       {"0", "-1", "", "some", "4x", "99999999999999999999"}) {
    config.combine_group_size = text;
    EXPECT_THAT(std::string(CheckRouterConfig(config).message()),
                ContainsRegex("--combine-group-size is '"))
        << text;
  }
}

TEST(RouterConfigTest, NumbersHaveARange) {
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  using Change = std::function<void(RouterConfig&)>;
  const std::vector<std::pair<std::string, Change>> cases = {
      {"--threads", [](auto& c) { c.threads = -1; }},
      {"--threads", [](auto& c) { c.threads = 1'000'000'000; }},
      {"--max-step-tokens", [](auto& c) { c.max_step_tokens = 0; }},
      {"--max-step-tokens", [](auto& c) { c.max_step_tokens = kHuge; }},
      {"--max-sequences", [](auto& c) { c.max_sequences = kHuge; }},
      {"--max-queue", [](auto& c) { c.max_queue = 0; }},
      {"--target-inter-token-latency",
       [](auto& c) { c.target_inter_token_latency_seconds = -1; }},
      {"--priority-step", [](auto& c) { c.priority_step_seconds = kNan; }},
      {"--load-window", [](auto& c) { c.load_window_seconds = 0; }},
      {"--rebalance-interval",
       [](auto& c) { c.rebalance_interval_seconds = 0; }},
      {"--rebalance-windows", [](auto& c) { c.rebalance_windows = 0; }},
      {"--rebalance-bytes-per-minute",
       [](auto& c) { c.rebalance_bytes_per_minute = -1; }},
      {"--max-queue", [](auto& c) { c.max_queue = kHuge; }},
      {"--kv-cache-tokens", [](auto& c) { c.kv_cache_tokens = kHuge; }},
      {"--kv-cache-bytes", [](auto& c) { c.kv_cache_bytes = kHuge; }},
      {"--capacity-factor", [](auto& c) { c.capacity_factor = kNan; }},
      {"--capacity-factor", [](auto& c) { c.capacity_factor = 1e300; }},
      {"--min-capacity", [](auto& c) { c.min_capacity = kHuge; }},
      {"--uncovered-timeout",
       [](auto& c) { c.uncovered_timeout_seconds = -1; }},
      {"--uncovered-timeout",
       [](auto& c) { c.uncovered_timeout_seconds = 1e18; }},
      {"--hedge-budget", [](auto& c) { c.hedge_budget = 2; }},
      {"--max-lost-gate-mass", [](auto& c) { c.max_lost_gate_mass = -1; }},
      {"--drain-timeout", [](auto& c) { c.drain_timeout_seconds = kInfinity; }},
      {"--scale-target-utilization",
       [](auto& c) { c.scale_target_utilization = 0; }},
      {"--scale-window", [](auto& c) { c.scale_window_seconds = 0; }},
      {"--scale-down-window",
       [](auto& c) { c.scale_down_window_seconds = kNan; }}};
  for (const auto& [flag, change] : cases) {
    RouterConfig config = Config();
    change(config);
    const absl::Status status = CheckRouterConfig(config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << flag;
    EXPECT_THAT(std::string(status.message()),
                ContainsRegex("^" + flag + " is .*; it must be from .* to .*"));
  }
}

TEST(RouterConfigTest, OneRouterOfAMeshControls) {
  RouterConfig config = Config();
  EXPECT_TRUE(config.controls());
  config.control = false;
  config.rebalance = "auto";
  EXPECT_FALSE(CheckRouterConfig(config).ok());
  config.control = true;
  EXPECT_TRUE(CheckRouterConfig(config).ok());
  config.rebalance = "sometimes";
  EXPECT_FALSE(CheckRouterConfig(config).ok());
  config = Config();
  config.experts_at.clear();
  config.mesh_config = "mesh.json";
  EXPECT_FALSE(config.controls());
}

TEST(RouterConfigTest, ThePrefixCacheIsOnOrOff) {
  RouterConfig config = Config();
  config.prefix_cache = "off";
  EXPECT_TRUE(CheckRouterConfig(config).ok());
  config.prefix_cache = "no";
  EXPECT_EQ(CheckRouterConfig(config).message(),
            "--prefix-cache is 'no'; it must be on or off");
}

TEST(RouterConfigTest, LargeNumbersAreShownWhole) {
  RouterConfig config = Config();
  config.kv_cache_tokens = 3'000'000'000;
  EXPECT_EQ(CheckRouterConfig(config).message(),
            "--kv-cache-tokens is 3000000000; it must be from 0 to 2000000000");
}

}  // namespace
}  // namespace expertmesh::router
