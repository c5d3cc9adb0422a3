// Server and client of WeightService over real gRPC, on a golden checkpoint.

#include "services/weights_transfer/weight_source.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "services/checkpoint/checkpoint.h"
#include "services/runtime/server_runtime.h"
#include "services/weights_transfer/weight_service_impl.h"
#include "tests/support/safetensors_writer.h"

namespace expertmesh {
namespace {

using expertmesh::testing::TempFolder;
using ::testing::HasSubstr;

// A lender of a golden checkpoint.
struct Lender {
  explicit Lender(const std::string& name,
                  const WeightServiceImpl::Options& options = {})
      : checkpoint(*Checkpoint::Open(std::string(EXPERTMESH_SOURCE_DIR) +
                                     "/tests/golden/" + name)),
        service(*WeightServiceImpl::Create(*checkpoint, options)),
        server(*GrpcServer::Start({}, {service.get()})) {}

  const std::unique_ptr<Checkpoint> checkpoint;
  const std::unique_ptr<WeightServiceImpl> service;
  const std::unique_ptr<GrpcServer> server;
};

std::string Bytes(const TensorView& tensor) {
  return std::string(reinterpret_cast<const char*>(tensor.data),
                     tensor.size_bytes());
}

class WeightPeersTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<WeightSource>> Open(
      const std::vector<std::string>& peers) {
    WeightSource::Options options;
    options.peers.addresses = peers;
    options.peers.attempts = 1;
    options.cache = cache_.path();
    return WeightSource::Open(options);
  }
  static std::string Gate(const Checkpoint& checkpoint, int64_t layer,
                          int64_t expert) {
    return checkpoint.family().ExpertNames(layer, expert).gate_proj;
  }
  static absl::StatusOr<TensorView> GateOf(const Checkpoint& checkpoint,
                                           int64_t layer, int64_t expert) {
    const ModelConfig& config = checkpoint.config();
    return checkpoint.Tensor(
        Gate(checkpoint, layer, expert),
        {config.expert_intermediate_size, config.hidden_size});
  }

  const TempFolder cache_;
};

// By golden checkpoint: of one file, and of several.
class WeightSourceTest : public WeightPeersTest,
                         public ::testing::WithParamInterface<std::string> {};

INSTANTIATE_TEST_SUITE_P(Goldens, WeightSourceTest,
                         ::testing::Values("qwen3_moe", "mixtral_sharded"));

TEST_P(WeightSourceTest, PullsWhatIsAskedForOnceAndNothingElse) {
  const Lender lender(GetParam());
  const auto source = Open({lender.server->address()});
  ASSERT_TRUE(source.ok()) << source.status();
  const auto copy = Checkpoint::Open((*source)->directory());
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ((*copy)->fingerprint(), lender.checkpoint->fingerprint());

  const std::string want = Bytes(*GateOf(*lender.checkpoint, 1, 3));
  const uint64_t before = (*source)->pulled_bytes();
  const std::string name = Gate(**copy, 1, 3);
  EXPECT_FALSE((*source)->Has(name, 1));
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE((*source)->Fetch(name).ok());
    EXPECT_EQ((*source)->pulled_bytes() - before, want.size());
  }
  EXPECT_TRUE((*source)->Has(name, want.size()));
  EXPECT_EQ(Bytes(*GateOf(**copy, 1, 3)), want);
  const std::string other = Bytes(*GateOf(**copy, 1, 4));
  EXPECT_EQ(other, std::string(other.size(), '\0'));  // a hole
  EXPECT_EQ((*source)->Fetch("no.such.tensor").code(),
            absl::StatusCode::kNotFound);
}

TEST_P(WeightSourceTest, ARestartNeedsNobodyForWhatItHas) {
  std::string name, want;
  {
    const Lender lender(GetParam());
    const auto source = Open({lender.server->address()});
    ASSERT_TRUE(source.ok()) << source.status();
    name = Gate(*lender.checkpoint, 0, 2);
    want = Bytes(*GateOf(*lender.checkpoint, 0, 2));
    ASSERT_TRUE((*source)->Fetch(name).ok());
  }
  const auto source = Open({"127.0.0.1:1"});
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_TRUE((*source)->Fetch(name).ok());
  EXPECT_EQ((*source)->pulled_bytes(), 0u);
  const auto copy = Checkpoint::Open((*source)->directory());
  EXPECT_EQ(Bytes(*GateOf(**copy, 0, 2)), want);
  const absl::Status missing = (*source)->Fetch(Gate(**copy, 0, 3));
  EXPECT_EQ(missing.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("127.0.0.1:1"));
}

TEST_P(WeightSourceTest, BytesDamagedOnDiskAreNotBelieved) {
  const Lender lender(GetParam());
  const std::string name = Gate(*lender.checkpoint, 0, 2);
  const std::string want = Bytes(*GateOf(*lender.checkpoint, 0, 2));
  std::string folder;
  {
    const auto source = Open({lender.server->address()});
    ASSERT_TRUE((*source)->Fetch(name).ok());
    folder = (*source)->directory();
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    std::ifstream in(entry.path(), std::ios::binary);
    std::string contents(std::istreambuf_iterator<char>(in), {});
    const size_t at = contents.find(want);
    if (at == std::string::npos) continue;
    contents[at + 7] ^= 1;
    std::ofstream(entry.path(), std::ios::binary) << contents;
  }
  std::ofstream(folder + "/pulled.journal", std::ios::app) << "17 0 cut";
  const auto source = Open({lender.server->address()});
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_TRUE((*source)->Fetch(name).ok());
  EXPECT_EQ((*source)->pulled_bytes(), want.size());
  const auto copy = Checkpoint::Open((*source)->directory());
  EXPECT_EQ(Bytes(*GateOf(**copy, 0, 2)), want);
}

TEST_F(WeightPeersTest, APeerThatLacksATensorIsLeftForTheNext) {
  WeightServiceImpl::Options options;
  options.has = [](absl::string_view, uint64_t end) { return end <= 1024; };
  const Lender poor("qwen3_moe", options);
  const Lender rich("qwen3_moe");
  const auto source = Open({poor.server->address(), rich.server->address()});
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE((*source)->Fetch(Gate(*rich.checkpoint, 0, 2)).ok());
}

TEST_F(WeightPeersTest, TheServerRefusesWhatItCannotGive) {
  const Lender lender("qwen3_moe");
  const auto stub = expert::v1::WeightService::NewStub(grpc::CreateChannel(
      lender.server->address(), grpc::InsecureChannelCredentials()));
  const auto read = [&](const std::string& fingerprint,
                        const std::string& tensor, uint64_t offset,
                        uint64_t length) {
    grpc::ClientContext context;
    expert::v1::ReadTensorRequest request;
    request.set_checkpoint_fingerprint(fingerprint);
    request.set_tensor(tensor);
    request.set_offset(offset);
    request.set_length(length);
    const auto call = stub->ReadTensor(&context, request);
    expert::v1::TensorChunk chunk;
    while (call->Read(&chunk)) {
    }
    return call->Finish().error_code();
  };
  const std::string& own = lender.checkpoint->fingerprint();
  const std::string gate = Gate(*lender.checkpoint, 0, 0);
  EXPECT_EQ(read(own, gate, 0, 8), grpc::StatusCode::OK);
  EXPECT_EQ(read("other", gate, 0, 8), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(read(own, "none", 0, 8), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(read(own, gate, 8, UINT64_MAX), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(read(own, gate, UINT64_MAX, 1), grpc::StatusCode::OUT_OF_RANGE);
}

TEST(WeightCacheTest, RefusesManifestsThatLeadElsewhere) {
  const TempFolder root;
  expert::v1::Manifest manifest;
  manifest.set_checkpoint_fingerprint("../../etc");
  EXPECT_EQ(WeightCache::Create(root.path(), manifest).status().code(),
            absl::StatusCode::kFailedPrecondition);
  manifest.set_checkpoint_fingerprint("abc123");
  for (const char* name :
       {"../config.json", "/tmp/x.safetensors", "run.sh", ".safetensors", ""}) {
    manifest.clear_weight_files();
    manifest.add_weight_files()->set_name(name);
    EXPECT_EQ(WeightCache::Create(root.path(), manifest).status().code(),
              absl::StatusCode::kFailedPrecondition)
        << name;
  }
  EXPECT_TRUE(std::filesystem::is_empty(root.path()));
}

}  // namespace
}  // namespace expertmesh
