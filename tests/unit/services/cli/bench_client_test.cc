#include "services/cli/bench_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"

namespace expertmesh {
namespace {

using ::testing::SizeIs;

// Writes the tokens asked for, two in a message. The prompt's first token says
// what else happens.
class FakeServer final : public v1::GenerationService::Service {
 public:
  enum Behaviour : uint32_t { kGood, kFull, kNoLastMessage, kSilent };

  FakeServer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() override { server_->Shutdown(); }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  void WaitUntilSilent() { silent_.WaitForNotification(); }

  grpc::Status Generate(
      grpc::ServerContext* context, const v1::GenerateRequest* request,
      grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    const uint32_t behaviour = request->token_ids().ids(0);
    if (behaviour == kFull) {
      return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
    }
    if (behaviour == kSilent) {
      silent_.Notify();
      while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
      return grpc::Status::CANCELLED;
    }
    const uint32_t tokens = request->max_tokens();
    for (uint32_t sent = 0; sent < tokens;) {
      v1::GenerateResponse response;
      while (sent < tokens && response.token_ids_size() < 2) {
        response.add_token_ids(sent++);
      }
      if (sent == tokens && behaviour == kGood) {
        response.set_finish_reason(v1::FINISH_REASON_LENGTH);
        response.mutable_usage()->set_prompt_tokens(1);
        response.mutable_usage()->set_generated_tokens(tokens);
      }
      writer->Write(response);
    }
    return grpc::Status::OK;
  }

 private:
  int port_ = 0;
  absl::Notification silent_;
  std::unique_ptr<grpc::Server> server_;
};

v1::GenerateRequest Request(FakeServer::Behaviour behaviour, uint32_t tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(behaviour);
  request.set_max_tokens(tokens);
  return request;
}

ServerFlags At(const std::string& address) {
  ServerFlags flags;
  flags.address = address;
  return flags;
}

class BenchClientTest : public ::testing::Test {
 protected:
  LoadResult Run(const LoadLevel& level,
                 std::function<v1::GenerateRequest(uint64_t)> make_request) {
    return BenchClient(client_).Run(
        level, 1, {std::move(make_request), [](const auto&) { return true; }});
  }

  FakeServer server_;
  Client client_ = *Client::Create(At(server_.address()));
};

TEST_F(BenchClientTest, NotesWhenEveryTokenArrived) {
  const LoadResult result =
      Run({.concurrency = 3, .max_requests = 20},
          [](uint64_t) { return Request(FakeServer::kGood, 5); });
  ASSERT_THAT(result.records, SizeIs(20));
  for (const RequestRecord& record : result.records) {
    EXPECT_TRUE(record.status.ok()) << record.status;
    ASSERT_THAT(record.tokens, SizeIs(5));
    EXPECT_TRUE(std::is_sorted(record.tokens.begin(), record.tokens.end()));
    EXPECT_EQ(record.tokens[0], record.tokens[1]) << "one message";
    EXPECT_LE(record.begun, record.tokens.front());
    EXPECT_LE(record.tokens.back(), record.ended);
    EXPECT_LE(record.ended, result.elapsed);
    EXPECT_EQ(record.last.usage().generated_tokens(), 5);
  }
  EXPECT_EQ(result.unfinished, 0);
}

TEST_F(BenchClientTest, HundredsOfStreamsRunAtOnce) {
  const LoadResult result =
      Run({.request_rate = std::numeric_limits<double>::infinity(),
           .max_requests = 300},
          [](uint64_t) { return Request(FakeServer::kGood, 8); });
  ASSERT_THAT(result.records, SizeIs(300));
  for (const RequestRecord& record : result.records) {
    EXPECT_TRUE(record.status.ok()) << record.status;
    EXPECT_EQ(record.begun, absl::ZeroDuration());
  }
}

TEST_F(BenchClientTest, FailuresAreRecordsToo) {
  const LoadResult result =
      Run({.concurrency = 2, .max_requests = 6}, [](uint64_t index) {
        return Request(index % 3 == 0 ? FakeServer::kFull : FakeServer::kGood,
                       2);
      });
  ASSERT_THAT(result.records, SizeIs(6));
  int failed = 0;
  for (const RequestRecord& record : result.records) {
    if (record.status.ok()) continue;
    ++failed;
    EXPECT_EQ(record.status, absl::ResourceExhaustedError("full"));
  }
  EXPECT_EQ(failed, 2);
}

TEST_F(BenchClientTest, AStreamWithoutItsLastMessageHasFailed) {
  const LoadResult result =
      Run({.concurrency = 1, .max_requests = 1},
          [](uint64_t) { return Request(FakeServer::kNoLastMessage, 2); });
  ASSERT_THAT(result.records, SizeIs(1));
  EXPECT_EQ(result.records[0].status.code(), absl::StatusCode::kInternal);
}

TEST_F(BenchClientTest, AnInterruptEndsWhatIsUnderWay) {
  // The first request is answered, the second never.
  const LoadResult result = BenchClient(client_).Run(
      {.concurrency = 1, .max_requests = 5}, 1,
      {[](uint64_t index) {
         return Request(index == 0 ? FakeServer::kGood : FakeServer::kSilent,
                        2);
       },
       [&](const BenchClient::Progress& progress) {
         if (progress.done == 0) return true;
         server_.WaitUntilSilent();
         return false;
       }});
  EXPECT_THAT(result.records, SizeIs(1));
  EXPECT_EQ(result.unfinished, 1);
}

TEST(BenchClient, AServerThatIsGoneFailsEveryRequest) {
  Client client = *Client::Create(At("127.0.0.1:1"));
  const LoadResult result = BenchClient(client).Run(
      {.concurrency = 2, .max_requests = 3}, 1,
      {[](uint64_t) { return Request(FakeServer::kGood, 2); },
       [](const auto&) { return true; }});
  ASSERT_THAT(result.records, SizeIs(3));
  for (const RequestRecord& record : result.records) {
    EXPECT_EQ(record.status.code(), absl::StatusCode::kUnavailable);
  }
}

}  // namespace
}  // namespace expertmesh
