#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/runtime/bearer_tokens.h"
#include "services/runtime/server_runtime.h"
#include "services/runtime/tls_files.h"
#include "services/runtime/tls_identity.h"

namespace expertmesh {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

// Certificates made by openssl, in a folder of their own.
class TlsTest : public testing::Test {
 protected:
  TlsTest() {
    std::filesystem::create_directories(folder_);
    Run(absl::StrCat("req -x509 ", NewKey("ca"), " -out ", Path("ca.pem"),
                     " -days 2 -subj /CN=ca"));
    Issue("one", 1);
  }
  ~TlsTest() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const {
    return absl::StrCat(folder_, "/", name);
  }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name)) << text;
  }
  std::string Read(const std::string& name) const {
    std::ifstream in(Path(name));
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void Issue(const std::string& name, int days) const {
    Write("names", "subjectAltName=IP:127.0.0.1");
    Run(absl::StrCat("req ", NewKey(name), " -out ", Path("csr"),
                     " -subj /CN=", name));
    Run(absl::StrCat("x509 -req -in ", Path("csr"), " -CA ", Path("ca.pem"),
                     " -CAkey ", Path("ca.key"), " -CAcreateserial -days ",
                     days, " -out ", Path(name + ".pem"), " -extfile ",
                     Path("names")));
  }
  TlsFiles Files(const std::string& name) const {
    return {"--x-tls", Path(name + ".pem"), Path(name + ".key"),
            Path("ca.pem")};
  }

 private:
  std::string NewKey(const std::string& name) const {
    return absl::StrCat(
        "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ",
        Path(name + ".key"));
  }
  static void Run(const std::string& arguments) {
    ASSERT_EQ(std::system(
                  absl::StrCat("openssl ", arguments, " 2>/dev/null").c_str()),
              0)
        << arguments;
  }

  const std::string folder_ =
      absl::StrCat(testing::TempDir(), "tls_test.", getpid());
};

TEST_F(TlsTest, ReadsWhatIsThere) {
  const auto contents = ReadTlsFiles(Files("one"));
  ASSERT_TRUE(contents.ok()) << contents.status();
  EXPECT_EQ(contents->cert, Read("one.pem"));
  EXPECT_EQ(contents->key, Read("one.key"));
  EXPECT_EQ(contents->ca, Read("ca.pem"));
  EXPECT_GT(contents->expiry, absl::Now() + absl::Hours(23));
  EXPECT_LT(contents->expiry, absl::Now() + absl::Hours(25));
}

TEST_F(TlsTest, SaysWhatIsWrong) {
  Issue("two", 1);
  Write("empty", "");
  const auto error = [&](TlsFiles files) {
    const auto contents = ReadTlsFiles(files);
    EXPECT_TRUE(absl::IsInvalidArgument(contents.status()));
    return std::string(contents.status().message());
  };
  TlsFiles files = Files("one");
  files.key = "";
  EXPECT_EQ(error(files), "--x-tls-cert and --x-tls-key go together");
  files.key = Path("two.key");
  EXPECT_THAT(error(files), HasSubstr("is not the key of --x-tls-cert"));
  files.key = Path("none");
  EXPECT_THAT(error(files), EndsWith("none: No such file or directory"));
  files.key = Path("ca.pem");
  EXPECT_THAT(error(files), HasSubstr("holds no private key"));
  files = Files("one");
  files.cert = Path("one.key");
  EXPECT_THAT(error(files), HasSubstr("holds no certificate"));
  files = Files("one");
  files.ca = Path("empty");
  EXPECT_THAT(error(files), EndsWith("empty: is empty"));
}

TEST_F(TlsTest, AnExpiredCertificateIsNoError) {
  Issue("old", -1);
  const auto contents = ReadTlsFiles(Files("old"));
  ASSERT_TRUE(contents.ok()) << contents.status();
  EXPECT_LT(contents->expiry, absl::Now());
}

// Whether a new connection comes about.
bool Connects(const std::string& address,
              const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto channel =
      grpc::CreateCustomChannel(address, credentials, arguments);
  channel->GetState(/*try_to_connect=*/true);
  auto state = GRPC_CHANNEL_IDLE;
  const auto deadline =
      std::chrono::system_clock::now() + std::chrono::seconds(30);
  while (state != GRPC_CHANNEL_READY &&
         state != GRPC_CHANNEL_TRANSIENT_FAILURE &&
         channel->WaitForStateChange(state, deadline)) {
    state = channel->GetState(false);
  }
  return state == GRPC_CHANNEL_READY;
}

TEST_F(TlsTest, BothSidesCheckAndNewFilesAreUsed) {
  RouteGrpcLogs();
  absl::Time expiry;
  Mutex mutex;
  const auto one = TlsIdentity::Load(Files("one"), [&](absl::Time time) {
    MutexLock lock(&mutex);
    expiry = time;
  });
  ASSERT_TRUE(one.ok()) << one.status();
  GrpcServerOptions options;
  options.credentials = ServerCredentials(one->get());
  const auto server = *GrpcServer::Start(options, {});
  EXPECT_TRUE(Connects(server->address(), (*one)->ChannelCredentials()));
  EXPECT_FALSE(Connects(server->address(), ChannelCredentials(nullptr)));
  Issue("late", -1);
  const auto late = *TlsIdentity::Load(Files("late"));
  EXPECT_FALSE(Connects(server->address(), late->ChannelCredentials()));

  const auto seen = [&] {
    MutexLock lock(&mutex);
    return expiry;
  };
  const absl::Time before = seen();
  Issue("one", 5);
  while (seen() == before) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_TRUE(Connects(server->address(), (*one)->ChannelCredentials()));
}

TEST_F(TlsTest, TokensAreOneOfThoseOfTheFile) {
  Write("tokens", "# first\nabc\n\n  spaced-out \n");
  auto tokens = BearerTokens::Load("--tokens", Path("tokens"));
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_TRUE((*tokens)->Has("abc"));
  EXPECT_TRUE((*tokens)->Has("spaced-out"));
  for (const char* wrong : {"", "ab", "abcd", "# first", "spaced-out "}) {
    EXPECT_FALSE((*tokens)->Has(wrong)) << wrong;
  }
  Write("tokens", "new\n");
  while (!(*tokens)->Has("new")) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_FALSE((*tokens)->Has("abc"));
}

TEST_F(TlsTest, FilesWithoutTokensAreRefused) {
  const auto error = [&](const std::string& text) {
    Write("tokens", text);
    return std::string(
        BearerTokens::Load("--tokens", Path("tokens")).status().message());
  };
  EXPECT_THAT(error(""), EndsWith("tokens: holds no token"));
  EXPECT_THAT(error("# only this\n"), EndsWith("tokens: holds no token"));
  EXPECT_THAT(error("ok\nnot ok\n"),
              EndsWith("line 2 has characters that no token can have"));
  EXPECT_THAT(
      std::string(
          BearerTokens::Load("--tokens", Path("none")).status().message()),
      EndsWith("none: No such file or directory"));
}

TEST(GrpcServerHealth, APortOfItsOwn) {
  GrpcServerOptions options;
  options.health_listen = "127.0.0.1:0";
  const auto server = *GrpcServer::Start(options, {});
  EXPECT_NE(server->health_address(), "");
  EXPECT_NE(server->health_address(), server->address());
}

}  // namespace
}  // namespace expertmesh
