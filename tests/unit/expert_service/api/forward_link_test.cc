// Forward over a local link, as routers on this host use it.

#include <gmock/gmock.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "services/wire/local_link.h"
#include "tests/unit/expert_service/api/expert_service_fixture.h"

namespace expertmesh::expert {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A Forward stream whose link the service has opened.
class LinkedCall {
 public:
  explicit LinkedCall(v1::ExpertService::Stub* stub)
      : link_(*LocalLink::Create()) {
    context_.AddMetadata(kLocalLinkMetadata, link_->Offer());
    call_ = stub->Forward(&context_);
    while (!link_->IsAccepted()) std::this_thread::yield();
  }
  ~LinkedCall() {
    context_.TryCancel();
    if (!is_ended_) call_->Finish();
  }

  void Write(const std::string& bytes) {
    const grpc::Slice slice(bytes);
    ASSERT_TRUE(link_->Write(grpc::ByteBuffer(&slice, 1)));
  }
  void Write(const v1::ExpertBatch& batch) { Write(batch.SerializeAsString()); }

  v1::ExpertResult Read() {
    grpc::ByteBuffer message;
    while (link_->Read(&message) != LocalLink::Received::kMessage) {
      std::this_thread::yield();
    }
    grpc::Slice slice;
    EXPECT_TRUE(message.DumpToSingleSlice(&slice).ok());
    v1::ExpertResult result;
    EXPECT_TRUE(
        result.ParseFromArray(slice.begin(), static_cast<int>(slice.size())));
    return result;
  }
  grpc::Status AwaitEnd() {
    v1::ExpertResult result;
    EXPECT_FALSE(call_->Read(&result));
    const grpc::Status status = call_->Finish();
    is_ended_ = true;
    return status;
  }

  ForwardCall& call() { return *call_; }
  LocalLink& link() { return *link_; }
  void Cancel() { context_.TryCancel(); }

 private:
  const std::unique_ptr<LocalLink> link_;
  grpc::ClientContext context_;
  std::unique_ptr<ForwardCall> call_;
  bool is_ended_ = false;
};

TEST_F(ExpertServiceTest, AnswersByTheWayABatchCame) {
  LinkedCall call(stub_.get());
  for (uint64_t i = 1; i <= 200; ++i) {
    call.Write(Batch(i, i % kLayers, {0, 2}));
    const v1::ExpertResult result = call.Read();
    EXPECT_EQ(result.code(), v1::CODE_OK) << result.message();
    EXPECT_EQ(result.sequence_number(), i);
    EXPECT_THAT(Rows(result), ElementsAre(2, 2, 2, 2, 4, 4, 4, 4));
  }
  ASSERT_TRUE(call.call().Write(Batch(500, 0, {1})));
  v1::ExpertResult result;
  ASSERT_TRUE(call.call().Read(&result));
  EXPECT_EQ(result.sequence_number(), 500u);
  call.Write(Batch(501, 0, {1}));
  EXPECT_EQ(call.Read().sequence_number(), 501u);
  EXPECT_EQ(answers_[v1::CODE_OK].Value(), 202);
}

TEST_F(ExpertServiceTest, AnOfferThatCannotBeOpenedLeavesTheStreamAsItIs) {
  grpc::ClientContext context;
  context.AddMetadata(kLocalLinkMetadata, "1:elsewhere:1:2:3:4");
  const auto call = stub_->Forward(&context);
  ASSERT_TRUE(call->Write(Batch(1, 0, {0})));
  v1::ExpertResult result;
  ASSERT_TRUE(call->Read(&result));
  EXPECT_EQ(result.code(), v1::CODE_OK);
  call->WritesDone();
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(ExpertServiceTest, GarbageOnTheLinkEndsTheStream) {
  LinkedCall call(stub_.get());
  call.Write("\xff\xff\xff garbage");
  const grpc::Status status = call.AwaitEnd();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("ExpertBatch"));
}

TEST_F(ExpertServiceTest, ReadsNoLinkFurtherThanItsBoundOfUnansweredBatches) {
  ffn_.Hold(true);
  LinkedCall call(stub_.get());
  for (uint64_t i = 0; i < 5 * kMaxBatches; ++i) call.Write(Batch(i, 0, {0}));
  ffn_.AwaitRun(1);
  ffn_.Hold(false);
  for (uint64_t i = 0; i < 5 * kMaxBatches; ++i) {
    EXPECT_EQ(call.Read().code(), v1::CODE_OK);
    EXPECT_LE(queue_.WaitingRows(), static_cast<int64_t>(kMaxBatches));
  }
}

TEST_F(ExpertServiceTest, ARouterThatGoesAwayTakesWhatCameByItsLinkWithIt) {
  ffn_.Hold(true);
  {
    LinkedCall call(stub_.get());
    call.Write(Batch(0, 0, {0}));
    ffn_.AwaitRun(1);
    call.Write(Batch(1, 1, {0}));
    call.Write(Batch(2, 2, {0}));
    while (queue_.WaitingRows() < 2) std::this_thread::yield();
    call.Cancel();
    EXPECT_EQ(call.AwaitEnd().error_code(), grpc::StatusCode::CANCELLED);
  }
  while (queue_.WaitingRows() > 0) std::this_thread::yield();
  ffn_.Hold(false);
  LinkedCall other(stub_.get());
  other.Write(Batch(5, 0, {1}));
  EXPECT_EQ(other.Read().code(), v1::CODE_OK);
  EXPECT_EQ(load_.rows(1, 0) + load_.rows(2, 0), 0u);
}

TEST_F(ExpertServiceTest, EndStreamsAnswersWhatCameByTheLinkFirst) {
  ffn_.Hold(true);
  LinkedCall call(stub_.get());
  call.Write(Batch(0, 0, {0}));
  ffn_.AwaitRun(1);
  service_->EndStreams();
  ffn_.Hold(false);
  EXPECT_EQ(call.AwaitEnd().error_code(), grpc::StatusCode::UNAVAILABLE);
  // It was written before the stream ended.
  grpc::ByteBuffer message;
  EXPECT_EQ(call.link().Read(&message), LocalLink::Received::kMessage);
}

TEST_F(ExpertServiceTest, ManyRoutersWithLinksThatComeAndGo) {
  std::vector<std::thread> routers;
  for (uint32_t r = 0; r < 4; ++r) {
    routers.emplace_back([this, r] {
      for (uint64_t i = 0; i < 20; ++i) {
        // Those that ended a moment ago still count.
        while (streams_.Value() > kMaxStreams / 2) std::this_thread::yield();
        LinkedCall call(stub_.get());
        call.Write(Batch(i, r % kLayers, {r % 3}));
        if (i % 2 == 0) {
          EXPECT_EQ(call.Read().code(), v1::CODE_OK);
        }
      }
    });
  }
  for (std::thread& router : routers) router.join();
}

}  // namespace
}  // namespace expertmesh::expert
