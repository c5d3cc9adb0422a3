#include "services/mesh/mesh_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/str_cat.h"

namespace expertmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

// Three layers of four experts, the first without any.
ModelConfig Model() {
  ModelConfig model;
  model.num_layers = 3;
  model.num_experts = 4;
  model.layers.resize(3);
  model.layers[0].is_moe = false;
  return model;
}

class MeshFile : public ::testing::Test {
 protected:
  absl::StatusOr<MeshConfig> Read(const std::string& text) {
    std::ofstream(path_) << text;
    return ReadMeshFile(path_, Model());
  }
  // A file of one pool `base` with more fields.
  absl::StatusOr<MeshConfig> ReadPool(const std::string& fields) {
    return Read(absl::StrCat(R"({"pools": [{"name": "base", )", fields, "}]}"));
  }
  void ExpectFault(const absl::StatusOr<MeshConfig>& mesh,
                   const std::string& text) {
    ASSERT_FALSE(mesh.ok()) << text;
    EXPECT_EQ(mesh.status().code(), absl::StatusCode::kInvalidArgument);
    const std::string message(mesh.status().message());
    EXPECT_THAT(message, StartsWith(path_ + ": "));
    EXPECT_THAT(message, HasSubstr(text));
    EXPECT_THAT(message, Not(HasSubstr("\n")));
  }

  const std::string path_ = absl::StrCat(
      ::testing::TempDir(), "/mesh_",
      ::testing::UnitTest::GetInstance()->current_test_info()->name(), ".json");
};

TEST_F(MeshFile, IsReadWhole) {
  const auto mesh = Read(R"({"pools": [
    {"name": "base", "target": "dns:///experts-base.mesh:50052",
     "fixed": {"slots": "0-3"}},
    {"name": "hot-1", "target": "10.0.0.1:1, [::1]:2,host:3", "device": "cpu",
     "managed": {"memoryBudgetBytes": 8589934592}, "weight": 2.5,
     "min_replicas": 2, "maxReplicas": 8}], "expertDtype": "bf16"})");
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  EXPECT_EQ(mesh->expert_dtype, "bf16");
  ASSERT_EQ(mesh->pools.size(), 2u);
  const PoolConfig& base = mesh->pools[0];
  EXPECT_EQ(base.name, "base");
  ASSERT_TRUE(base.target.dns.has_value());
  EXPECT_EQ(base.target.dns->host, "experts-base.mesh");
  EXPECT_EQ(base.target.dns->port, 50052);
  EXPECT_THAT(base.target.addresses, IsEmpty());
  EXPECT_FALSE(base.is_managed);
  EXPECT_EQ(base.slots.size(), 8u);
  EXPECT_EQ(base.weight, 1);
  EXPECT_EQ(base.min_replicas, 1u);
  EXPECT_EQ(base.max_replicas, 0u);
  const PoolConfig& hot = mesh->pools[1];
  EXPECT_FALSE(hot.target.dns.has_value());
  EXPECT_THAT(hot.target.addresses,
              ElementsAre("10.0.0.1:1", "[::1]:2", "host:3"));
  EXPECT_EQ(hot.device, "cpu");
  EXPECT_TRUE(hot.is_managed);
  EXPECT_EQ(hot.memory_budget_bytes, 8589934592u);
  EXPECT_EQ(hot.weight, 2.5);
  EXPECT_EQ(hot.min_replicas, 2u);
  EXPECT_EQ(hot.max_replicas, 8u);
}

TEST_F(MeshFile, FaultsNameTheFieldAndThePool) {
  const char* kGood = R"("target": "h:1", "fixed": {"slots": "0"})";
  const struct {
    std::string fields;
    const char* message;
  } cases[] = {
      {absl::StrCat(kGood, R"(, "colour": 1)"), "colour"},
      {R"("target": "h:1", "fixed": {"experts": "0"})", "experts"},
      {absl::StrCat(kGood, R"(, "weight": "much")"), "weight"},
      {absl::StrCat(kGood, R"(, "managed": {})"), "contents"},
      {absl::StrCat(kGood, R"(, "target": "h:2")"), "'target' appears twice"},
      {R"("target": "h:1")", "pool base: fixed or managed is missing"},
      {R"("fixed": {"slots": "0"})", "pool base: target: "},
      {R"("target": "h", "managed": {})", "pool base: target: address 'h'"},
      {R"("target": "h:0", "managed": {})", "needs a port"},
      {R"("target": "h:1,g:2,h:1", "managed": {})", "h:1 is given twice"},
      {R"("target": "h:1,", "managed": {})", "the port is missing"},
      {R"("target": "dns:///", "managed": {})", "pool base: target: "},
      {R"("target": "dns://8.8.8.8/h:1", "managed": {})", "dns:///NAME:PORT"},
      {R"("target": "dns:///h:1,g:1", "managed": {})", "more than one name"},
      {R"("target": "xds:///h:1", "managed": {})", "dns:///NAME:PORT"},
      {R"("target": "file://run/hot", "managed": {})", "file:///PATH"},
      {R"("target": "h:1", "fixed": {})", "pool base: fixed.slots: ''"},
      {R"("target": "h:1", "fixed": {"slots": "0-4"})", "no expert 4"},
      {absl::StrCat(kGood, R"(, "weight": 0)"), "pool base: weight is 0"},
      {absl::StrCat(kGood, R"(, "weight": -1)"), "weight is -1"},
      {absl::StrCat(kGood, R"(, "weight": "NaN")"), "weight is nan"},
      {absl::StrCat(kGood, R"(, "weight": 1e9)"), "at most 1000"},
      {absl::StrCat(kGood, R"(, "minReplicas": 0)"), "min_replicas is 0"},
      {absl::StrCat(kGood, R"(, "maxReplicas": 0)"), "max_replicas is 0"},
      {absl::StrCat(kGood, R"(, "minReplicas": 3, "maxReplicas": 2)"),
       "at least 1 and min_replicas, 3"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.fields);
    ExpectFault(ReadPool(c.fields), c.message);
  }
}

TEST_F(MeshFile, FaultsOfTheWholeFile) {
  const auto pool = [](const char* name, const char* target) {
    return absl::StrCat(R"({"managed": {}, "name": ")", name,
                        R"(", "target": ")", target, "\"}");
  };
  const auto pools = [&](const std::string& one, const std::string& two) {
    return absl::StrCat(R"({"pools": [)", one, ",", two, "]}");
  };
  ExpectFault(Read(""), "malformed JSON");
  ExpectFault(Read("[]"), "one JSON object");
  ExpectFault(Read("{}"), "at least one pool");
  ExpectFault(Read(R"({"pool": []})"), "pool");
  ExpectFault(Read(pools(pool("a", "h:1"), pool("a", "h:2"))),
              "pool a: name: another pool");
  ExpectFault(Read(pools(pool("a", "h:1"), pool("b", "g:1,h:1"))),
              "pool b: target: pool a has h:1 too");
  ExpectFault(Read(pools(pool("a", "dns:///h:1"), pool("b", "dns:///h:1"))),
              "pool b: target: pool a has dns:///h:1 too");
  ExpectFault(Read(pools(pool("a", "file:///h"), pool("b", "file:///h"))),
              "pool b: target: pool a has file:///h too");
  for (const char* name : {"", "A", "-a", "a-", "a_b", "a b"}) {
    ExpectFault(Read(pools(pool("x", "h:1"), pool(name, "h:2"))),
                "pools[1]: name: ");
  }
  ExpectFault(
      Read(pools(pool("x", "h:1"), pool(std::string(64, 'a').c_str(), "h:2"))),
      "pools[1]: name: ");
  for (const char* suffix : {".absent", "/."}) {
    const auto mesh = ReadMeshFile(path_ + suffix, Model());
    EXPECT_EQ(mesh.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(mesh.status().message()),
                StartsWith(absl::StrCat(path_, suffix, ": ")));
  }
}

TEST_F(MeshFile, IsWrittenAsItWasRead) {
  const auto mesh = Read(R"({"pools": [
    {"name": "base", "target": "dns:///experts-base.mesh:50052",
     "fixed": {"slots": "0-2,3@1"}},
    {"name": "cold", "target": "[::1]:2,host:3", "device": "cpu",
     "managed": {}, "minReplicas": 2},
    {"name": "hot", "target": "file:///run/hot", "weight": 2.5,
     "managed": {"memoryBudgetBytes": "8589934592"}, "maxReplicas": 8}],
     "expertDtype": "bf16"})");
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  const auto again = Read(FormatMeshFile(*mesh, Model()));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->expert_dtype, "bf16");
  ASSERT_EQ(again->pools.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    const PoolConfig &before = mesh->pools[i], &after = again->pools[i];
    EXPECT_EQ(after.name, before.name);
    EXPECT_EQ(after.target.ToString(), before.target.ToString());
    EXPECT_EQ(after.device, before.device);
    EXPECT_EQ(after.is_managed, before.is_managed);
    EXPECT_EQ(after.slots, before.slots);
    EXPECT_EQ(after.memory_budget_bytes, before.memory_budget_bytes);
    EXPECT_EQ(after.weight, before.weight);
    EXPECT_EQ(after.min_replicas, before.min_replicas);
    EXPECT_EQ(after.max_replicas, before.max_replicas);
  }
}

TEST_F(MeshFile, PoolsMayLackATargetWhereTheReaderStartsThem) {
  const char* kFile = R"({"pools": [{"name": "hot", "managed": {}},
                                     {"name": "base", "managed": {}}]})";
  ExpectFault(Read(kFile), "pool hot: target: is missing");
  const auto mesh = ReadMeshFile(path_, Model(), Targets::kOptional);
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  EXPECT_FALSE(mesh->pools[0].target.is_given());
}

TEST(ParsePoolTarget, TakesAFileOfAddresses) {
  const auto target = ParsePoolTarget("file:///run/a, b");
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_EQ(target->file, "/run/a, b");
  EXPECT_THAT(target->addresses, IsEmpty());
  EXPECT_EQ(target->ToString(), "file:///run/a, b");
  for (const char* text : {"file://host/run", "file://", "file:/run"}) {
    EXPECT_EQ(ParsePoolTarget(text).status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(MeshOfAddresses, IsOnePoolOfWhateverTheyHold) {
  const auto mesh = MeshOfAddresses({"127.0.0.1:5", "name:6"});
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  ASSERT_EQ(mesh->pools.size(), 1u);
  EXPECT_EQ(mesh->pools[0].name, "experts");
  EXPECT_THAT(mesh->pools[0].target.addresses,
              ElementsAre("127.0.0.1:5", "name:6"));
  EXPECT_FALSE(mesh->pools[0].is_managed);
  EXPECT_THAT(mesh->pools[0].slots, IsEmpty());
  EXPECT_EQ(mesh->pools[0].min_replicas, 2u);
}

TEST(MeshOfAddresses, RefusesBadAddresses) {
  const struct {
    std::vector<std::string> addresses;
    const char* message;
  } cases[] = {{{}, "no expert service"},
               {{"127.0.0.1:5", "127.0.0.1:6", "127.0.0.1:5"}, "twice"},
               {{"127.0.0.1"}, "127.0.0.1"},
               {{"127.0.0.1:0"}, "needs a port"}};
  for (const auto& c : cases) {
    const auto mesh = MeshOfAddresses(c.addresses);
    EXPECT_EQ(mesh.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(mesh.status().message()), HasSubstr(c.message));
  }
}

}  // namespace
}  // namespace expertmesh
