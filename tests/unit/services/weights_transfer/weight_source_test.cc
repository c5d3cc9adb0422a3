// Server and client of WeightService over real gRPC, on a golden checkpoint.

#include "services/weights_transfer/weight_source.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "services/checkpoint/checkpoint.h"
#include "services/runtime/server_runtime.h"
#include "services/weights_transfer/weight_service_impl.h"
#include "tests/support/safetensors_writer.h"

namespace expertmesh {
namespace {

using expertmesh::testing::MakeCheckpoint;
using expertmesh::testing::ReadFile;
using expertmesh::testing::TempFolder;
using expertmesh::testing::TinyConfig;
using expertmesh::testing::WriteFile;
using ::testing::HasSubstr;

std::string Golden(const std::string& name) {
  return std::string(EXPERTMESH_SOURCE_DIR) + "/tests/golden/" + name;
}

// A lender of a golden checkpoint, or of another folder.
struct Lender {
  explicit Lender(const std::string& name,
                  const WeightServiceImpl::Options& options = {})
      : checkpoint(*Checkpoint::Open(
            std::filesystem::is_directory(name) ? name : Golden(name))),
        service(*WeightServiceImpl::Create(*checkpoint, options)),
        server(*GrpcServer::Start({}, {service.get()})) {}

  const std::unique_ptr<Checkpoint> checkpoint;
  const std::unique_ptr<WeightServiceImpl> service;
  const std::unique_ptr<GrpcServer> server;
};

// Passes a lender's answers on after `before`, which may refuse instead.
class Proxy final : public expert::v1::WeightService::Service {
 public:
  using Before = std::function<grpc::Status(grpc::ServerContext*)>;

  Proxy(const Lender& lender, Before before)
      : stub_(expert::v1::WeightService::NewStub(grpc::CreateChannel(
            lender.server->address(), grpc::InsecureChannelCredentials()))),
        before_(std::move(before)),
        server_(*GrpcServer::Start({}, {this})) {}

  std::string address() const { return server_->address(); }

  grpc::Status GetManifest(grpc::ServerContext*,
                           const expert::v1::GetManifestRequest* request,
                           expert::v1::Manifest* response) override {
    grpc::ClientContext context;
    return stub_->GetManifest(&context, *request, response);
  }
  grpc::Status ReadTensor(
      grpc::ServerContext* context,
      const expert::v1::ReadTensorRequest* request,
      grpc::ServerWriter<expert::v1::TensorChunk>* writer) override {
    const grpc::Status status = before_(context);
    if (!status.ok()) return status;
    grpc::ClientContext onward;
    const auto call = stub_->ReadTensor(&onward, *request);
    for (expert::v1::TensorChunk chunk; call->Read(&chunk);) {
      writer->Write(chunk);
    }
    return call->Finish();
  }

 private:
  const std::unique_ptr<expert::v1::WeightService::Stub> stub_;
  const Before before_;
  const std::unique_ptr<GrpcServer> server_;
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

TEST_P(WeightSourceTest, ADamagedFolderIsMendedFromTheManifest) {
  const Lender lender(GetParam());
  const std::string name = Gate(*lender.checkpoint, 0, 2);
  const std::string want = Bytes(*GateOf(*lender.checkpoint, 0, 2));
  std::string folder;
  {
    const auto source = Open({lender.server->address()});
    ASSERT_TRUE(source.ok()) << source.status();
    ASSERT_TRUE((*source)->Fetch(name).ok());
    folder = (*source)->directory();
  }
  const std::string file = lender.checkpoint->FileOf(name).substr(
      lender.checkpoint->directory().size());
  const std::string sound = ReadFile(folder + file);
  const std::string config = ReadFile(folder + "/config.json");
  std::string header = sound;
  header[20] ^= 1;
  const std::string damages[][2] = {{file, header},
                                    {file, sound.substr(0, 100)},
                                    {file, sound + "more"},
                                    {"/config.json", config.substr(1)},
                                    {"/config.json", ""}};
  for (const auto& [damaged, bytes] : damages) {
    WriteFile(folder + damaged, bytes);
    const auto source = Open({lender.server->address()});
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_EQ(ReadFile(folder + "/config.json"), config);
    ASSERT_TRUE((*source)->Fetch(name).ok());
    const auto copy = Checkpoint::Open(folder, Checkpoint::Data::kPartial);
    ASSERT_TRUE(copy.ok()) << copy.status();
    EXPECT_EQ(Bytes(*GateOf(**copy, 0, 2)), want);
  }
}

TEST_F(WeightPeersTest, LayingOutRemovesWhatAKilledServiceLeft) {
  std::filesystem::create_directory(cache_.File(".new-abcdef"));
  WriteFile(cache_.File(".new-abcdef/config.json"), "{");
  const Lender lender("qwen3_moe");
  ASSERT_TRUE(Open({lender.server->address()}).ok());
  EXPECT_FALSE(std::filesystem::exists(cache_.File(".new-abcdef")));
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

TEST_F(WeightPeersTest, ABusyPeerIsAskedAgainAndADeadOneLeft) {
  const Lender lender("qwen3_moe");
  std::atomic<int> refusals = 4;
  Proxy busy(lender, [&](grpc::ServerContext*) {
    return refusals.fetch_sub(1) > 0
               ? grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "later")
               : grpc::Status::OK;
  });
  // One attempt: were a refusal a failure, the first would be the last.
  const auto source = Open({busy.address(), "127.0.0.1:1"});
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_LE(refusals, 0);
  const absl::Status fetched = (*source)->Fetch(Gate(*lender.checkpoint, 0, 2));
  EXPECT_TRUE(fetched.ok()) << fetched;
}

TEST_F(WeightPeersTest, AStopEndsAPullWhateverItWaitsFor) {
  const Lender lender("qwen3_moe");
  enum Wait { kNothing, kBusyPeer, kSilentPeer, kAnotherService };
  std::atomic<Wait> wait = kNothing;
  std::atomic<int> waits = 0;
  Proxy peer(lender, [&](grpc::ServerContext* context) {
    if (wait == kNothing) return grpc::Status::OK;
    ++waits;
    while (wait == kSilentPeer && !context->IsCancelled()) {
      std::this_thread::yield();
    }
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "later");
  });
  const auto source = Open({peer.address()});
  ASSERT_TRUE(source.ok()) << source.status();
  const std::string name = Gate(*lender.checkpoint, 0, 2);
  const auto other = WeightCache::OpenOnly(cache_.path());
  ASSERT_TRUE(other.ok()) << other.status();
  for (const Wait what : {kBusyPeer, kSilentPeer, kAnotherService}) {
    wait = what;
    waits = 0;
    absl::StatusOr<WeightCache::Lock> held = nullptr;
    if (what == kAnotherService) held = (*other)->Acquire(name, {});
    ASSERT_TRUE(held.ok()) << held.status();
    std::stop_source stop;
    absl::Status status;
    std::thread fetch(
        [&] { status = (*source)->Fetch(name, stop.get_token()); });
    while (what != kAnotherService && waits == 0) std::this_thread::yield();
    stop.request_stop();
    fetch.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  }
  // Nothing of it stays; and who waits for a tensor waits for that one only.
  wait = kNothing;
  const auto held = (*other)->Acquire(Gate(*lender.checkpoint, 0, 3), {});
  ASSERT_TRUE(held.ok()) << held.status();
  EXPECT_TRUE((*source)->Fetch(name).ok());
}

TEST_F(WeightPeersTest, TwoServicesOfAMachinePullATensorOnce) {
  const Lender lender("qwen3_moe");
  const auto first = Open({lender.server->address()});
  const auto second = Open({lender.server->address()});
  ASSERT_TRUE(first.ok() && second.ok());
  const uint64_t before = (*first)->pulled_bytes() + (*second)->pulled_bytes();
  const std::string name = Gate(*lender.checkpoint, 0, 2);
  std::thread fetch([&] { EXPECT_TRUE((*first)->Fetch(name).ok()); });
  EXPECT_TRUE((*second)->Fetch(name).ok());
  fetch.join();
  EXPECT_EQ((*first)->pulled_bytes() + (*second)->pulled_bytes() - before,
            Bytes(*GateOf(*lender.checkpoint, 0, 2)).size());
}

// The rest of the table and of the head stays a hole: they are not compared.
TEST_F(WeightPeersTest, PullsACheckpointThatStoresItsTiedHead) {
  const TempFolder folder;
  nlohmann::json config = TinyConfig("qwen3_moe");
  config["tie_word_embeddings"] = true;
  auto parts = MakeCheckpoint(config);
  auto head = parts.Tensor("model.embed_tokens.weight");
  head.name = "lm_head.weight";
  parts.tensors.push_back(head);
  parts.Write(folder.path());
  const Lender lender(folder.path());
  const auto source = Open({lender.server->address()});
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE((*source)->Fetch(Gate(*lender.checkpoint, 0, 2)).ok());
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
