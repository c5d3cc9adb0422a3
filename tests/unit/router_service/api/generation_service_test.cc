// The service over real gRPC, with an engine in this process.

#include "router_service/api/generation_service_impl.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <future>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "router_service/router_metrics.h"
#include "services/runtime/server_runtime.h"
#include "tests/support/local_engine.h"

namespace expertmesh::router {
namespace {

using ::testing::HasSubstr;

constexpr const char* kGolden = EXPERTMESH_SOURCE_DIR "/tests/golden/";

class GenerationServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    RouteGrpcLogs();
    auto engine = testing::LocalEngine::Load(absl::StrCat(kGolden, "mixtral"),
                                             testing::LocalEngineOptions());
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    // Its first pieces are those of a SentencePiece model.
    auto tokenizer = Tokenizer::Load(
        absl::StrCat(kGolden, "tokenizers/llama_spm/tokenizer.json"));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    RequestTranslator::Options options;
    options.vocab_size = engine_->model->config().vocab_size;
    options.max_context_tokens = engine_->model->options.max_context_tokens;
    translator_.emplace(options, tokenizer_.get());
    worker_.emplace(
        TextWorker::Options{.max_inline_size = 100, .max_queue = 1});
    metrics_ = MakeApiMetrics(engine_->metrics.get());
    service_.emplace(&*translator_, engine_->engine.get(), &*worker_,
                     tokenizer_.get(), metrics_, Clock::Real(),
                     engine_->model->config().num_experts);
    auto server = GrpcServer::Start({}, {&*service_});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(server_->address(),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::GenerationService::NewStub(channel_);
  }

  double Count(Method method, absl::StatusCode code) const {
    return metrics_.requests[static_cast<int>(method)][static_cast<int>(code)]
        ->Value();
  }
  // Waits until the server has counted a call, which is when it ends it.
  void AwaitCount(Method method, absl::StatusCode code, double count) const {
    while (Count(method, code) < count) std::this_thread::yield();
  }

  std::string Detokenize(const std::vector<int32_t>& ids) {
    v1::DetokenizeRequest request;
    request.mutable_token_ids()->Add(ids.begin(), ids.end());
    request.set_skip_special(true);
    v1::DetokenizeResponse response;
    grpc::ClientContext context;
    const grpc::Status status = stub_->Detokenize(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.text();
  }

  grpc::Status Tokenize(const std::string& text) {
    v1::TokenizeRequest request;
    request.set_text(text);
    v1::TokenizeResponse response;
    grpc::ClientContext context;
    return stub_->Tokenize(&context, request, &response);
  }

  grpc::Status Generate(const v1::GenerateRequest& request,
                        absl::Duration timeout, std::string* text = nullptr,
                        std::vector<int32_t>* ids = nullptr) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      if (text != nullptr) *text += response.text();
      if (ids == nullptr) continue;
      ids->insert(ids->end(), response.token_ids().begin(),
                  response.token_ids().end());
    }
    return reader->Finish();
  }

  grpc::Status SendBytes(const std::string& method, const std::string& bytes) {
    grpc::GenericStub stub(channel_);
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    grpc::ClientContext context;
    std::promise<grpc::Status> done;
    stub.UnaryCall(&context, "/expertmesh.v1.GenerationService/" + method, {},
                   &request, &response,
                   [&](grpc::Status status) { done.set_value(status); });
    return done.get_future().get();
  }

  std::unique_ptr<testing::LocalEngine> engine_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<RequestTranslator> translator_;
  std::optional<TextWorker> worker_;
  ApiMetrics metrics_;
  std::optional<GenerationServiceImpl> service_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> stub_;
};

TEST_F(GenerationServiceTest, TextGoesOnWhereThePromptEnds) {
  int compared = 0;
  int spaces = 0;
  for (int32_t id = 3; id < 320; id += 7) {
    v1::GenerateRequest request;
    request.mutable_token_ids()->add_ids(1);
    request.mutable_token_ids()->add_ids(id);
    request.set_max_tokens(6);
    request.set_ignore_eos(true);
    std::string text;
    std::vector<int32_t> ids = {1, id};
    const std::string before = Detokenize(ids);
    ASSERT_TRUE(Generate(request, absl::Minutes(1), &text, &ids).ok());
    const std::string whole = Detokenize(ids);
    if (!absl::StartsWith(whole, before)) continue;
    EXPECT_EQ(text, whole.substr(before.size())) << "after token " << id;
    ++compared;
    spaces += absl::StartsWith(text, " ");
  }
  EXPECT_GT(compared, 20);
  EXPECT_GT(spaces, 0);
}

TEST_F(GenerationServiceTest, BytesThatAreNoMessageAreInvalidArguments) {
  const std::string kBadUtf8("\x0a\x02\xff\xfe",
                             4);  // text, where there is one
  const std::string kGarbage("\xff\xff\xff", 3);
  const auto check = [&](const char* name, Method method,
                         const std::string& bytes, double count) {
    const grpc::Status status = SendBytes(name, bytes);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << name;
    EXPECT_THAT(status.error_message(), HasSubstr("UTF-8")) << name;
    EXPECT_THAT(status.error_message(),
                HasSubstr(absl::StrCat("expertmesh.v1.", name, "Request")));
    EXPECT_EQ(Count(method, absl::StatusCode::kInvalidArgument), count);
  };
  check("Generate", Method::kGenerate, kGarbage, 1);
  check("Generate", Method::kGenerate, kBadUtf8, 2);
  check("Score", Method::kScore, kGarbage, 1);
  check("Score", Method::kScore, kBadUtf8, 2);
  check("Tokenize", Method::kTokenize, kGarbage, 1);
  check("Tokenize", Method::kTokenize, kBadUtf8, 2);
  check("Detokenize", Method::kDetokenize, kGarbage, 1);
}

TEST_F(GenerationServiceTest, LongTextsWaitAndNobodyElseDoes) {
  const std::string kLong(200, 'a');
  std::promise<void> started;
  std::promise<void> release;
  ASSERT_TRUE(worker_
                  ->Run(1000,
                        [&] {
                          started.set_value();
                          release.get_future().wait();
                        })
                  .ok());
  started.get_future().wait();

  // The one place in the queue: left at the deadline, with no thread free.
  v1::GenerateRequest request;
  request.set_text(kLong);
  request.set_max_tokens(1);
  ASSERT_TRUE(Tokenize("short").ok());  // connected
  EXPECT_EQ(Generate(request, absl::Seconds(1)).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  // Where the request was long on its way, the client hangs up first.
  const auto given_up = [&] {
    return Count(Method::kGenerate, absl::StatusCode::kDeadlineExceeded) +
           Count(Method::kGenerate, absl::StatusCode::kCancelled);
  };
  while (given_up() < 1) std::this_thread::yield();

  // Its job is in the queue until the worker has seen that it is void.
  EXPECT_EQ(Tokenize(kLong).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Generate(request, absl::Minutes(1)).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  v1::ScoreRequest score;
  score.set_text(kLong);
  v1::ScoreResponse scored;
  grpc::ClientContext context;
  EXPECT_EQ(stub_->Score(&context, score, &scored).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Tokenize("short").ok());
  request.mutable_token_ids()->add_ids(5);
  EXPECT_TRUE(Generate(request, absl::Minutes(1)).ok());

  release.set_value();
  grpc::Status status;
  do {
    status = Tokenize(kLong);
  } while (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(given_up(), 1);
}

TEST_F(GenerationServiceTest, ALongPromptIsServed) {
  v1::GenerateRequest request;
  for (int i = 0; i < 150; ++i) request.mutable_token_ids()->add_ids(5 + i);
  request.set_max_tokens(3);
  request.set_ignore_eos(true);
  std::vector<int32_t> ids;
  EXPECT_TRUE(Generate(request, absl::Minutes(1), nullptr, &ids).ok());
  EXPECT_EQ(ids.size(), 3u);
}

}  // namespace
}  // namespace expertmesh::router
