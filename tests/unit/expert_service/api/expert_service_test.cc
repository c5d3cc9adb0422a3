// Forward and WatchState as routers see them.

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "services/wire/row_sum.h"
#include "tests/unit/expert_service/api/expert_service_fixture.h"

namespace expertmesh::expert {
namespace {

using ::testing::HasSubstr;

TEST_F(ExpertServiceTest, AnswersEveryBatchOnce) {
  grpc::ClientContext context;
  const auto call = stub_->Forward(&context);
  std::map<uint64_t, int> answers;
  for (uint64_t i = 0; i < 50; ++i) {
    ASSERT_TRUE(call->Write(Batch(i, i % kLayers, {0, 2})));
    v1::ExpertResult result;
    ASSERT_TRUE(call->Read(&result));
    EXPECT_EQ(result.code(), v1::CODE_OK) << result.message();
    EXPECT_EQ(result.num_rows(), 2u);
    EXPECT_EQ(result.hidden_size(), kHidden);
    EXPECT_THAT(Rows(result), testing::ElementsAre(2, 2, 2, 2, 4, 4, 4, 4));
    ++answers[result.sequence_number()];
  }
  EXPECT_EQ(answers.size(), 50u);
  call->WritesDone();
  v1::ExpertResult none;
  EXPECT_FALSE(call->Read(&none));
  EXPECT_TRUE(call->Finish().ok());
  EXPECT_EQ(answers_[v1::CODE_OK].Value(), 50);
}

TEST_F(ExpertServiceTest, ClosingTheSendingSideStillGetsEveryAnswer) {
  grpc::ClientContext context;
  const auto call = stub_->Forward(&context);
  ffn_.Hold(true);
  for (uint64_t i = 0; i < 3; ++i) ASSERT_TRUE(call->Write(Batch(i, 1, {1})));
  call->WritesDone();
  ffn_.AwaitRun(1);
  ffn_.Hold(false);
  int answers = 0;
  for (v1::ExpertResult result; call->Read(&result);) ++answers;
  EXPECT_EQ(answers, 3);
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(ExpertServiceTest, ABatchThatCannotBeServedLeavesTheStreamOpen) {
  grpc::ClientContext context;
  const auto call = stub_->Forward(&context);
  const auto ask = [&](const v1::ExpertBatch& batch) {
    v1::ExpertResult result;
    EXPECT_TRUE(call->Write(batch));
    EXPECT_TRUE(call->Read(&result));
    EXPECT_EQ(result.sequence_number(), batch.sequence_number());
    return result;
  };
  const v1::ExpertResult missing = ask(Batch(7, 0, {1, 3}));
  EXPECT_EQ(missing.code(), v1::CODE_NOT_HOSTED);
  EXPECT_THAT(missing.message(), HasSubstr("expert 3 of layer 0"));
  EXPECT_EQ(missing.num_rows(), 0u);

  const v1::ExpertResult layer = ask(Batch(8, kLayers, {1}));
  EXPECT_EQ(layer.code(), v1::CODE_INVALID_ARGUMENT);
  EXPECT_THAT(layer.message(), HasSubstr("layer 3"));

  v1::ExpertBatch wide = Batch(9, 0, {1, 2});
  wide.set_hidden_size(2 * kHidden);
  wide.set_num_tokens(1);
  wide.set_row_token(1, 0);
  const v1::ExpertResult shape = ask(wide);
  EXPECT_EQ(shape.code(), v1::CODE_INVALID_ARGUMENT);
  EXPECT_THAT(shape.message(), HasSubstr("hidden_size 8"));

  v1::ExpertBatch descending = Batch(10, 0, {2, 1});
  EXPECT_EQ(ask(descending).code(), v1::CODE_INVALID_ARGUMENT);

  EXPECT_EQ(ask(Batch(11, 0, {1})).code(), v1::CODE_OK);
  EXPECT_EQ(answers_[v1::CODE_INVALID_ARGUMENT].Value(), 3);
  EXPECT_EQ(answers_[v1::CODE_NOT_HOSTED].Value(), 1);
  call->WritesDone();
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(ExpertServiceTest, RowsComeBackAddedUpWhereTheBatchAsks) {
  grpc::ClientContext context;
  const auto call = stub_->Forward(&context);
  v1::ExpertBatch batch = Batch(1, 2, {0, 1, 2});
  for (const float weight : {0.5f, 7.0f, -0.25f}) batch.add_row_weight(weight);
  for (const uint32_t sum : {0u, kNoSum, 0u}) batch.add_row_sum(sum);
  batch.set_num_sums(1);
  v1::ExpertResult result;
  ASSERT_TRUE(call->Write(batch));
  ASSERT_TRUE(call->Read(&result));
  EXPECT_EQ(result.code(), v1::CODE_OK) << result.message();
  EXPECT_EQ(result.num_rows(), 1u);
  EXPECT_EQ(result.num_sums(), 1u);
  EXPECT_THAT(Rows(result), testing::ElementsAre(4, 4, 4, 4));
  EXPECT_THAT(Sums(result), testing::ElementsAre(-0.5, -0.5, -0.5, -0.5));

  batch.set_row_sum(1, 0);
  ASSERT_TRUE(call->Write(batch));
  ASSERT_TRUE(call->Read(&result));
  EXPECT_EQ(result.num_rows(), 0u);
  EXPECT_EQ(result.hidden_states(), "");
  EXPECT_THAT(Sums(result), testing::ElementsAre(27.5, 27.5, 27.5, 27.5));

  batch.set_row_sum(1, 1);
  ASSERT_TRUE(call->Write(batch));
  ASSERT_TRUE(call->Read(&result));
  EXPECT_EQ(result.code(), v1::CODE_INVALID_ARGUMENT);
  EXPECT_THAT(result.message(), HasSubstr("row_sum[1]"));
  EXPECT_EQ(result.num_sums(), 0u);
  call->WritesDone();
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(ExpertServiceTest, BytesThatAreNoBatchEndTheStream) {
  grpc::GenericStub stub(channel_);
  grpc::ClientContext context;
  grpc::CompletionQueue cq;
  const auto call = stub.PrepareCall(
      &context, "/expertmesh.expert.v1.ExpertService/Forward", &cq);
  const auto await = [&] {
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(cq.Next(&tag, &ok));
    return ok;
  };
  call->StartCall(nullptr);
  ASSERT_TRUE(await());
  const grpc::Slice garbage("\xff\xff\xff garbage");
  call->Write(grpc::ByteBuffer(&garbage, 1), nullptr);
  ASSERT_TRUE(await());
  grpc::Status status;
  call->Finish(&status, nullptr);
  ASSERT_TRUE(await());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("ExpertBatch"));
}

TEST_F(ExpertServiceTest, ReadsNoFurtherThanItsBoundOfUnansweredBatches) {
  ffn_.Hold(true);
  grpc::ClientContext context;
  const auto call = stub_->Forward(&context);
  for (uint64_t i = 0; i < 5 * kMaxBatches; ++i) {
    ASSERT_TRUE(call->Write(Batch(i, 0, {0})));  // gRPC buffers small ones
  }
  ffn_.AwaitRun(1);
  // Twenty rows would not fit into the queue, but only four are ever in it.
  ffn_.Hold(false);
  for (uint64_t i = 0; i < 5 * kMaxBatches; ++i) {
    v1::ExpertResult result;
    ASSERT_TRUE(call->Read(&result));
    EXPECT_EQ(result.code(), v1::CODE_OK) << result.message();
    EXPECT_LE(queue_.WaitingRows(), static_cast<int64_t>(kMaxBatches));
  }
  call->WritesDone();
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(ExpertServiceTest, AFullQueueRefusesWithItsCode) {
  ffn_.Hold(true);
  grpc::ClientContext context;
  const auto call = stub_->Forward(&context);
  ASSERT_TRUE(call->Write(Batch(0, 0, {0})));
  ffn_.AwaitRun(1);
  v1::ExpertBatch large = Batch(1, 0, {});
  large.set_num_tokens(10);
  large.add_expert_ids(0);
  large.add_group_offsets(10);
  for (uint32_t i = 0; i < 10; ++i) large.add_row_token(i);
  large.set_hidden_states(std::string(10 * kHidden * 4, '\0'));
  ASSERT_TRUE(call->Write(large));
  large.set_sequence_number(2);
  ASSERT_TRUE(call->Write(large));
  v1::ExpertResult result;
  ASSERT_TRUE(call->Read(&result));
  EXPECT_EQ(result.sequence_number(), 2u);
  EXPECT_EQ(result.code(), v1::CODE_RESOURCE_EXHAUSTED);
  ffn_.Hold(false);
  ASSERT_TRUE(call->Read(&result));
  ASSERT_TRUE(call->Read(&result));
  call->WritesDone();
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(ExpertServiceTest, RowsOfALayerFromTwoRoutersRunTogether) {
  grpc::ClientContext context_a, context_b;
  const auto a = stub_->Forward(&context_a);
  const auto b = stub_->Forward(&context_b);
  ffn_.Hold(true);
  ASSERT_TRUE(a->Write(Batch(0, 0, {0})));
  ffn_.AwaitRun(1);
  ASSERT_TRUE(a->Write(Batch(1, 2, {0, 1})));
  ASSERT_TRUE(b->Write(Batch(1, 2, {1, 2})));
  while (queue_.WaitingRows() < 4) std::this_thread::yield();
  ffn_.Hold(false);
  v1::ExpertResult result;
  ASSERT_TRUE(b->Read(&result));
  EXPECT_THAT(Rows(result), testing::ElementsAre(2, 2, 2, 2, 4, 4, 4, 4));
  ASSERT_TRUE(a->Read(&result));
  ASSERT_TRUE(a->Read(&result));
  EXPECT_EQ(result.code(), v1::CODE_OK);
  EXPECT_THAT(ffn_.rows_of_run(), testing::ElementsAre(1, 4));
}

TEST_F(ExpertServiceTest, ARouterThatFloodsGetsItsShareWhileAnotherAsks) {
  constexpr int kFlood = 40;
  grpc::ClientContext context_a, context_b;
  const auto a = stub_->Forward(&context_a);
  const auto b = stub_->Forward(&context_b);
  // The one that opens later would have its turn later.
  while (streams_.Value() < 2) std::this_thread::yield();
  ffn_.Hold(true);
  // Layers of their own, so that nothing merges across routers.
  for (int i = 0; i < kFlood; ++i) ASSERT_TRUE(a->Write(Batch(i, 0, {0})));
  ffn_.AwaitRun(1);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(b->Write(Batch(i, 1, {0})));
  while (queue_.PendingRows() < 8) std::this_thread::yield();
  ffn_.AllowRuns(2);  // the one under way, and b's
  v1::ExpertResult result;
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(b->Read(&result));
    EXPECT_EQ(result.code(), v1::CODE_OK) << result.message();
    // Both wish for twice the four rows they had unanswered, of twelve.
    EXPECT_EQ(result.credit_rows(), 6u);
  }
  EXPECT_LE(load_.rows(0, 0), 4u);
  ffn_.Hold(false);
  for (int i = 0; i < kFlood; ++i) {
    ASSERT_TRUE(a->Read(&result));
    EXPECT_EQ(result.code(), v1::CODE_OK) << result.message();
    EXPECT_LE(result.credit_rows(), 12u);
  }
}

TEST_F(ExpertServiceTest, MoreStreamsThanItsBoundAreRefused) {
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<ForwardCall>> calls;
  v1::ExpertResult result;
  for (int64_t i = 0; i < kMaxStreams; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    calls.push_back(stub_->Forward(contexts.back().get()));
    ASSERT_TRUE(calls.back()->Write(Batch(1, 0, {0})));
    ASSERT_TRUE(calls.back()->Read(&result));
  }
  EXPECT_EQ(streams_.Value(), kMaxStreams);
  {
    grpc::ClientContext context;
    const auto call = stub_->Forward(&context);
    EXPECT_FALSE(call->Read(&result));
    const grpc::Status status = call->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(status.error_message(), HasSubstr("8 streams"));
  }
  calls.back()->WritesDone();
  EXPECT_TRUE(calls.back()->Finish().ok());
  while (streams_.Value() >= kMaxStreams) std::this_thread::yield();
  grpc::ClientContext context;
  const auto call = stub_->Forward(&context);
  ASSERT_TRUE(call->Write(Batch(1, 0, {0})));
  EXPECT_TRUE(call->Read(&result));
  for (const auto& other : contexts) other->TryCancel();
}

TEST_F(ExpertServiceTest, MoreBytesThanItsBoundAreRefused) {
  ffn_.Hold(true);
  grpc::ClientContext context;
  const auto call = stub_->Forward(&context);
  ASSERT_TRUE(call->Write(Batch(0, 0, {0})));
  ffn_.AwaitRun(1);
  v1::ExpertBatch large = Batch(1, 0, {0});
  large.set_num_tokens(50);  // 800 bytes in, 800 out
  large.set_group_offsets(1, 50);
  for (uint32_t i = 1; i < 50; ++i) large.add_row_token(i);
  large.set_hidden_states(std::string(50 * kHidden * 4, '\0'));
  ASSERT_TRUE(call->Write(large));
  v1::ExpertResult result;
  ASSERT_TRUE(call->Read(&result));
  EXPECT_EQ(result.sequence_number(), 1u);
  EXPECT_EQ(result.code(), v1::CODE_RESOURCE_EXHAUSTED);
  EXPECT_THAT(result.message(), HasSubstr("of 1500 bytes in flight"));
  ffn_.Hold(false);
  ASSERT_TRUE(call->Read(&result));
  while (bytes_in_flight_.Value() > 0) std::this_thread::yield();
  ASSERT_TRUE(call->Write(large));  // alone it may, whatever its size
  ASSERT_TRUE(call->Read(&result));
  EXPECT_EQ(result.code(), v1::CODE_OK) << result.message();
  while (bytes_in_flight_.Value() > 0) std::this_thread::yield();
}

TEST_F(ExpertServiceTest, ARouterThatGoesAwayTakesItsQueuedWorkWithIt) {
  ffn_.Hold(true);
  {
    grpc::ClientContext context;
    const auto call = stub_->Forward(&context);
    ASSERT_TRUE(call->Write(Batch(0, 0, {0})));
    ffn_.AwaitRun(1);
    ASSERT_TRUE(call->Write(Batch(1, 1, {0})));
    ASSERT_TRUE(call->Write(Batch(2, 2, {0})));
    while (queue_.WaitingRows() < 2) std::this_thread::yield();
    context.TryCancel();
    EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  while (queue_.WaitingRows() > 0) std::this_thread::yield();
  ffn_.Hold(false);
  // The service goes on for others.
  grpc::ClientContext context;
  const auto call = stub_->Forward(&context);
  ASSERT_TRUE(call->Write(Batch(5, 0, {1})));
  v1::ExpertResult result;
  ASSERT_TRUE(call->Read(&result));
  EXPECT_EQ(result.code(), v1::CODE_OK);
  EXPECT_EQ(load_.rows(1, 0) + load_.rows(2, 0), 0u);
}

TEST_F(ExpertServiceTest, EndStreamsAnswersWhatWasReadFirst) {
  ffn_.Hold(true);
  grpc::ClientContext context;
  const auto call = stub_->Forward(&context);
  ASSERT_TRUE(call->Write(Batch(0, 0, {0})));
  ffn_.AwaitRun(1);
  service_->EndStreams();
  ffn_.Hold(false);
  v1::ExpertResult result;
  ASSERT_TRUE(call->Read(&result));
  EXPECT_EQ(result.code(), v1::CODE_OK);
  EXPECT_FALSE(call->Read(&result));
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);

  grpc::ClientContext late_context;
  const auto late = stub_->Forward(&late_context);
  EXPECT_FALSE(late->Read(&result));
  EXPECT_EQ(late->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ExpertServiceTest, ManyRoutersThatComeAndGo) {
  std::vector<std::thread> routers;
  for (int r = 0; r < 4; ++r) {
    routers.emplace_back([&, r] {
      for (int round = 0; round < 10; ++round) {
        grpc::ClientContext context;
        const auto call = stub_->Forward(&context);
        for (uint64_t i = 0; i < 4; ++i) {
          if (!call->Write(Batch(i, (r + i) % kLayers, {0, 1}))) break;
        }
        v1::ExpertResult result;
        if (!call->Read(&result)) {
          // Streams cancelled a moment ago may still count against the bound.
          EXPECT_EQ(call->Finish().error_code(),
                    grpc::StatusCode::RESOURCE_EXHAUSTED);
          --round;
          continue;
        }
        if (round % 2 == 0) context.TryCancel();
        call->WritesDone();
        while (call->Read(&result)) {
        }
        const grpc::Status status = call->Finish();
        EXPECT_TRUE(status.ok() || round % 2 == 0) << status.error_message();
      }
    });
  }
  for (std::thread& router : routers) router.join();
}

TEST_F(ExpertServiceTest, WatchStateTellsAtOnceOnChangeAndAtItsInterval) {
  grpc::ClientContext context;
  v1::WatchStateRequest request;
  request.set_interval_ms(3'600'000);  // only changes, within this test
  const auto watch = stub_->WatchState(&context, request);
  v1::EndpointState state;
  ASSERT_TRUE(watch->Read(&state));
  EXPECT_EQ(state.num_experts(), kExperts);
  EXPECT_EQ(state.hosted_size(), static_cast<int>(kLayers));
  EXPECT_EQ(state.queue_capacity_rows(), 12u);
  EXPECT_EQ(state.credit_rows(), 12u);
  EXPECT_FALSE(state.draining());
  service_->AnnounceDrain();
  ASSERT_TRUE(watch->Read(&state));
  EXPECT_TRUE(state.draining());

  grpc::ClientContext often_context;
  request.set_interval_ms(20);
  const auto often = stub_->WatchState(&often_context, request);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(often->Read(&state));

  service_->EndStreams();
  while (often->Read(&state)) {
  }
  EXPECT_EQ(often->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(watch->Read(&state));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ExpertServiceTest, AWatcherThatComesAsAnotherGoesKeepsItsInterval) {
  for (int i = 0; i < 30; ++i) {
    grpc::ClientContext seldom_context, often_context;
    v1::WatchStateRequest request;
    request.set_interval_ms(3'600'000);
    const auto seldom = stub_->WatchState(&seldom_context, request);
    v1::EndpointState state;
    ASSERT_TRUE(seldom->Read(&state));
    seldom_context.TryCancel();
    request.set_interval_ms(10);
    const auto often = stub_->WatchState(&often_context, request);
    for (int j = 0; j < 2; ++j) ASSERT_TRUE(often->Read(&state));
    often_context.TryCancel();
  }
}

TEST_F(ExpertServiceTest, WatchStateReportsTheLoadOfSlots) {
  grpc::ClientContext forward_context;
  const auto call = stub_->Forward(&forward_context);
  v1::ExpertResult result;
  ASSERT_TRUE(call->Write(Batch(0, 2, {0, 1})));
  ASSERT_TRUE(call->Read(&result));
  ASSERT_TRUE(call->Write(Batch(1, 2, {1})));
  ASSERT_TRUE(call->Read(&result));

  grpc::ClientContext context;
  const auto watch = stub_->WatchState(&context, {});
  v1::EndpointState state;
  ASSERT_TRUE(watch->Read(&state));
  ASSERT_EQ(state.load_size(), 2);
  EXPECT_EQ(state.load(0).layer(), 2u);
  EXPECT_EQ(state.load(0).expert_id(), 0u);
  EXPECT_EQ(state.load(0).rows(), 1u);
  EXPECT_EQ(state.load(1).rows(), 2u);
  context.TryCancel();
  while (watch->Read(&state)) {
  }
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

}  // namespace
}  // namespace expertmesh::expert
