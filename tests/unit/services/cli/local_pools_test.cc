#include "services/cli/local_pools.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "services/cli/flags.h"

namespace expertmesh {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// Two layers of four experts.
ModelConfig Model() {
  ModelConfig model;
  model.num_layers = 2;
  model.num_experts = 4;
  model.layers.resize(2);
  return model;
}

PoolConfig Base(const std::string& slots = "0-3") {
  PoolConfig pool;
  pool.name = "base";
  pool.slots = *ParseSlots(slots, Model());
  return pool;
}

PoolConfig Hot(uint64_t budget = 0) {
  PoolConfig pool;
  pool.name = "hot";
  pool.is_managed = true;
  pool.memory_budget_bytes = budget;
  return pool;
}

class LocalPoolsTest : public testing::Test {
 protected:
  absl::StatusOr<LocalPools> Create(std::vector<PoolConfig> pools,
                                    const std::string& dtype = "") {
    return LocalPools::Create({dtype, std::move(pools)}, Model(), commands_,
                              "3MiB", testing::TempDir());
  }
  // The command line of a service of the pool of this index.
  std::vector<std::string> Command(const LocalPools& pools, size_t index) {
    return pools.Spec(pools.pools()[index], 1).command("ready", nullptr);
  }

  LocalMesh commands_;
};

TEST_F(LocalPoolsTest, ServicesAreStartedByWhatTheFileSays) {
  PoolConfig base = Base("0-2,3@0,3@1");
  base.min_replicas = 2;
  PoolConfig idle = Hot(1000);
  idle.name = "idle";
  idle.min_replicas = 0;
  EXPECT_EQ(LocalPools::NumFirst({"bf16", {base, Hot(), idle}}), 4);
  const auto pools = Create({base, Hot(), idle}, "bf16");
  ASSERT_TRUE(pools.ok()) << pools.status();
  std::vector<std::string> names, of_pools;
  for (const ServiceSpec& spec : pools->AllSpecs()) {
    names.push_back(spec.name);
    of_pools.push_back(spec.pool);
  }
  EXPECT_THAT(names,
              ElementsAre("expert service base/1", "expert service base/2",
                          "expert service hot/1", "expert service idle/1"));
  EXPECT_THAT(of_pools, ElementsAre("base", "base", "hot", "idle"));
  EXPECT_THAT(Command(*pools, 0), Contains("0-3"));
  EXPECT_THAT(Command(*pools, 0), Not(Contains("--memory-budget")));
  EXPECT_THAT(Command(*pools, 0), Contains("--expert-dtype=bf16"));
  EXPECT_THAT(Command(*pools, 1), Contains("none"));
  EXPECT_THAT(Command(*pools, 1), Contains("--memory-budget=3MiB"));
  EXPECT_THAT(Command(*pools, 2), Contains("--memory-budget=1000"));
}

TEST_F(LocalPoolsTest, TheRouterFindsPoolsByFiles) {
  PoolConfig far = Hot();
  far.name = "far";
  far.target = *ParsePoolTarget("h:1");
  auto pools = Create({Base(), far});
  ASSERT_TRUE(pools.ok()) << pools.status();
  ASSERT_TRUE(pools->WriteMeshFile().ok());
  const auto mesh = ReadMeshFile(pools->mesh_file(), Model());
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  ASSERT_EQ(mesh->pools.size(), 2u);
  EXPECT_EQ(mesh->pools[1].target.ToString(), "h:1");
  const LocalPool& base = pools->pools()[0];
  ASSERT_TRUE(pools->WriteAddresses(base, {"h:2", "h:3"}).ok());
  EXPECT_EQ(*ReadFile(mesh->pools[0].target.file), "h:2\nh:3\n");
  ASSERT_TRUE(pools->WriteAddresses(base, {}).ok());
  EXPECT_EQ(*ReadFile(mesh->pools[0].target.file), "none\n");

  EXPECT_EQ(*pools->Find("base"), &pools->pools()[0]);
  EXPECT_THAT(std::string(pools->Find("far").status().message()),
              HasSubstr("has a target"));
  EXPECT_THAT(std::string(pools->Find("x").status().message()),
              HasSubstr("no pool x; started here are base"));
}

TEST_F(LocalPoolsTest, SizesHaveBounds) {
  LocalPool pool{.config = Hot()};
  EXPECT_TRUE(pool.CheckSize(1).ok());
  EXPECT_TRUE(pool.CheckSize(256).ok());
  for (const uint32_t size : {0, 257}) {
    EXPECT_TRUE(absl::IsInvalidArgument(pool.CheckSize(size))) << size;
  }
  pool.config.min_replicas = 0;
  pool.config.max_replicas = 3;
  EXPECT_TRUE(pool.CheckSize(0).ok());
  EXPECT_TRUE(pool.CheckSize(3).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(pool.CheckSize(4)));
}

TEST_F(LocalPoolsTest, EveryExpertMustBeHeldBySomebody) {
  const auto fault = [](const absl::StatusOr<LocalPools>& pools) {
    EXPECT_TRUE(absl::IsInvalidArgument(pools.status()));
    return std::string(pools.status().message());
  };
  EXPECT_THAT(fault(Create({Hot()})), HasSubstr("expert 0 of layer 0"));
  EXPECT_THAT(fault(Create({Base("0-2,3@0"), Hot()})),
              HasSubstr("expert 3 of layer 1"));
  // Others may hold the rest.
  PoolConfig far = Base("3");
  far.name = "far";
  far.target = *ParsePoolTarget("h:1");
  EXPECT_TRUE(Create({Base("0-2"), far}).ok());
  // Managed services are given what is missing.
  commands_.router_flags["--rebalance"] = "auto";
  EXPECT_TRUE(Create({Hot()}).ok());
}

TEST_F(LocalPoolsTest, OneTypeOfWeights) {
  commands_.expert_flags["--expert-dtype"] = "f32";
  EXPECT_TRUE(Create({Base()}).ok());
  EXPECT_TRUE(Create({Base()}, "f32").ok());
  EXPECT_THAT(std::string(Create({Base()}, "bf16").status().message()),
              HasSubstr("--expert-dtype is f32"));
}

}  // namespace
}  // namespace expertmesh
