// LoadExperts, UnloadExperts and Drain while batches run.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/expert_service/api/expert_service_fixture.h"

namespace expertmesh::expert {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <typename Request>
Request Order(uint64_t epoch, uint32_t layer,
              const std::vector<uint32_t>& experts) {
  Request request;
  request.set_epoch(epoch);
  v1::HostedExperts* slots = request.add_slots();
  slots->set_layer(layer);
  for (const uint32_t expert : experts) slots->add_expert_ids(expert);
  return request;
}

class ExpertOrdersTest : public ExpertServiceTest {
 protected:
  // Runs a whole load; `last` gets the last progress told.
  grpc::Status Load(uint64_t epoch, uint32_t layer,
                    const std::vector<uint32_t>& experts,
                    v1::LoadExpertsProgress* last = nullptr) {
    grpc::ClientContext context;
    const auto call = stub_->LoadExperts(
        &context, Order<v1::LoadExpertsRequest>(epoch, layer, experts));
    v1::LoadExpertsProgress progress;
    while (call->Read(&progress)) {
      if (last != nullptr) *last = progress;
    }
    return call->Finish();
  }
  grpc::Status Unload(uint64_t epoch, uint32_t layer,
                      const std::vector<uint32_t>& experts) {
    grpc::ClientContext context;
    v1::UnloadExpertsResponse response;
    return stub_->UnloadExperts(
        &context, Order<v1::UnloadExpertsRequest>(epoch, layer, experts),
        &response);
  }
  grpc::Status Drain(bool drain) {
    grpc::ClientContext context;
    v1::DrainRequest request;
    request.set_drain(drain);
    v1::DrainResponse response;
    return stub_->Drain(&context, request, &response);
  }
  // The answer to one batch on a stream of its own.
  v1::ExpertResult Ask(const v1::ExpertBatch& batch) {
    grpc::ClientContext context;
    const auto call = stub_->Forward(&context);
    v1::ExpertResult result;
    EXPECT_TRUE(call->Write(batch));
    EXPECT_TRUE(call->Read(&result));
    call->WritesDone();
    EXPECT_TRUE(call->Finish().ok());
    return result;
  }
};

TEST_F(ExpertOrdersTest, LoadsWhileBatchesRunAndSaysSoAtOnce) {
  grpc::ClientContext watch_context;
  v1::WatchStateRequest watch_request;
  watch_request.set_interval_ms(3'600'000);
  const auto watch = stub_->WatchState(&watch_context, watch_request);
  v1::EndpointState state;
  ASSERT_TRUE(watch->Read(&state));
  EXPECT_EQ(state.memory_budget_bytes(), kBudgetBytes);
  EXPECT_EQ(state.placement_epoch(), 0u);
  ASSERT_EQ(state.hosted_size(), static_cast<int>(kLayers));
  EXPECT_EQ(state.hosted(1).expert_ids_size(), 3);
  EXPECT_EQ(Ask(Batch(1, 1, {3})).code(), v1::CODE_NOT_HOSTED);

  loader_.Hold(true);
  v1::LoadExpertsProgress progress;
  grpc::Status loaded;
  std::thread order([&] { loaded = Load(5, 1, {2, 3}, &progress); });
  loader_.AwaitLoad(10);  // nine at first
  EXPECT_EQ(Ask(Batch(2, 1, {2})).code(), v1::CODE_OK);
  EXPECT_EQ(Ask(Batch(3, 1, {3})).code(), v1::CODE_NOT_HOSTED);
  loader_.Hold(false);
  order.join();
  ASSERT_TRUE(loaded.ok()) << loaded.error_message();
  EXPECT_EQ(progress.slots_done(), 1u);
  EXPECT_EQ(progress.slots_total(), 1u);
  EXPECT_EQ(progress.bytes_done(), 100u);
  EXPECT_EQ(progress.bytes_total(), 100u);
  EXPECT_EQ(Ask(Batch(4, 1, {3})).code(), v1::CODE_OK);

  ASSERT_TRUE(watch->Read(&state));
  EXPECT_EQ(state.placement_epoch(), 5u);
  EXPECT_THAT(state.hosted(1).expert_ids(), ElementsAre(0, 1, 2, 3));
  watch_context.TryCancel();
}

TEST_F(ExpertOrdersTest, UnloadsAndAnswersNotHosted) {
  grpc::ClientContext watch_context;
  v1::WatchStateRequest watch_request;
  watch_request.set_interval_ms(3'600'000);
  const auto watch = stub_->WatchState(&watch_context, watch_request);
  v1::EndpointState state;
  ASSERT_TRUE(watch->Read(&state));
  EXPECT_EQ(Ask(Batch(1, 2, {0, 1})).code(), v1::CODE_OK);
  ASSERT_TRUE(Unload(1, 2, {0, 3}).ok());
  ASSERT_TRUE(watch->Read(&state));
  EXPECT_THAT(state.hosted(2).expert_ids(), ElementsAre(1, 2));
  EXPECT_EQ(state.load_size(), 2);  // demand is of the mesh, not of the slot
  const v1::ExpertResult gone = Ask(Batch(2, 2, {0, 1}));
  EXPECT_EQ(gone.code(), v1::CODE_NOT_HOSTED);
  EXPECT_THAT(gone.message(), HasSubstr("expert 0 of layer 2"));
  EXPECT_EQ(Ask(Batch(3, 2, {1})).code(), v1::CODE_OK);
  watch_context.TryCancel();
}

TEST_F(ExpertOrdersTest, ABatchUnderWayIsAnsweredWithWhatItFound) {
  grpc::ClientContext context;
  const auto call = stub_->Forward(&context);
  ffn_.Hold(true);
  ASSERT_TRUE(call->Write(Batch(1, 0, {1})));
  ffn_.AwaitRun(1);
  std::thread order([&] { EXPECT_TRUE(Unload(1, 0, {1}).ok()); });
  while (weights_.Get()->Find(0, 1) != nullptr) std::this_thread::yield();
  ASSERT_TRUE(call->Write(Batch(2, 0, {1})));
  ffn_.Hold(false);
  v1::ExpertResult result;
  ASSERT_TRUE(call->Read(&result));
  EXPECT_EQ(result.code(), v1::CODE_OK);
  ASSERT_TRUE(call->Read(&result));
  EXPECT_EQ(result.code(), v1::CODE_NOT_HOSTED);
  order.join();
}

TEST_F(ExpertOrdersTest, RefusalsChangeNothing) {
  ASSERT_TRUE(Load(5, 1, {3}).ok());
  const grpc::Status stale = Load(4, 0, {3});
  EXPECT_EQ(stale.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Unload(4, 1, {3}).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Load(6, kLayers, {0}).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Unload(6, 0, {kExperts}).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(weights_.Get()->slots().size(), 10u);
  EXPECT_EQ(contents_.epoch(), 5u);
}

TEST_F(ExpertOrdersTest, ACancelledLoadIsGivenUp) {
  loader_.Hold(true);
  grpc::ClientContext context;
  const auto call =
      stub_->LoadExperts(&context, Order<v1::LoadExpertsRequest>(1, 0, {3}));
  loader_.AwaitLoad(10);
  // Waits behind it, and beside one more there is no room.
  std::thread second([&] { EXPECT_TRUE(Unload(1, 0, {0}).ok()); });
  context.TryCancel();
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::CANCELLED);
  loader_.AwaitStop();
  loader_.Hold(false);
  second.join();
  EXPECT_EQ(weights_.Get()->Find(0, 0), nullptr);
  EXPECT_EQ(weights_.Get()->Find(0, 3), nullptr);  // read, and not wanted
}

TEST_F(ExpertOrdersTest, AnUnloadItsCallerGaveUpIsNotCarriedOutLater) {
  loader_.Hold(true);
  grpc::Status loaded;
  std::thread load([&] { loaded = Load(1, 0, {3}); });
  loader_.AwaitLoad(10);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(50));
  v1::UnloadExpertsResponse response;
  const grpc::Status given_up = stub_->UnloadExperts(
      &context, Order<v1::UnloadExpertsRequest>(1, 0, {0}), &response);
  EXPECT_EQ(given_up.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  // Behind the cancellation on the same connection.
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(Drain(false).ok());
  loader_.Hold(false);
  load.join();
  EXPECT_TRUE(loaded.ok()) << loaded.error_message();
  ASSERT_TRUE(Unload(1, 0, {1}).ok());  // comes after it
  EXPECT_NE(weights_.Get()->Find(0, 0), nullptr);
  EXPECT_EQ(weights_.Get()->Find(0, 1), nullptr);
}

TEST_F(ExpertOrdersTest, AnOrderOfMoreSlotsThanTheModelHasIsRefusedAtOnce) {
  loader_.Hold(true);
  grpc::Status loaded;
  std::thread load([&] { loaded = Load(1, 0, {3}); });
  loader_.AwaitLoad(10);
  // Before whatever orders wait.
  const std::vector<uint32_t> many(kLayers * kExperts + 1, 0);
  for (const grpc::Status& status : {Load(1, 0, many), Unload(1, 0, many)}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("13 slots"));
  }
  loader_.Hold(false);
  load.join();
  EXPECT_TRUE(loaded.ok()) << loaded.error_message();
}

TEST_F(ExpertOrdersTest, OrdersThatWaitAreBoundedAndEndWithTheService) {
  loader_.Hold(true);
  grpc::Status first, waits[2];
  std::thread running([&] { first = Load(1, 0, {3}); });
  loader_.AwaitLoad(10);
  std::thread waiting[2];
  grpc::Status refused;
  for (int i = 0; i < 2; ++i) {
    waiting[i] = std::thread([&, i] { waits[i] = Load(1, 1, {3}); });
  }
  // Whichever comes third beside the two that may wait is refused at once.
  do {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(100));
    v1::UnloadExpertsResponse response;
    refused = stub_->UnloadExperts(
        &context, Order<v1::UnloadExpertsRequest>(1, 2, {}), &response);
  } while (refused.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  service_->EndStreams();
  loader_.Hold(false);
  running.join();
  for (std::thread& thread : waiting) thread.join();
  EXPECT_EQ(first.error_code(), grpc::StatusCode::UNAVAILABLE);
  for (const grpc::Status& status : waits) {
    EXPECT_TRUE(status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
}

TEST_F(ExpertOrdersTest, DrainCanBeTakenBackUntilItIsForGood) {
  grpc::ClientContext context;
  v1::WatchStateRequest request;
  request.set_interval_ms(3'600'000);
  const auto watch = stub_->WatchState(&context, request);
  v1::EndpointState state;
  ASSERT_TRUE(watch->Read(&state));
  ASSERT_TRUE(Drain(true).ok());
  ASSERT_TRUE(watch->Read(&state));
  EXPECT_TRUE(state.draining());
  EXPECT_EQ(Ask(Batch(1, 0, {1})).code(), v1::CODE_OK);
  ASSERT_TRUE(Drain(false).ok());
  ASSERT_TRUE(watch->Read(&state));
  EXPECT_FALSE(state.draining());
  service_->AnnounceDrain();
  EXPECT_EQ(Drain(false).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  ASSERT_TRUE(watch->Read(&state));
  EXPECT_TRUE(state.draining());
  EXPECT_THAT(drains_, ElementsAre(true, false, true));
  context.TryCancel();
}

}  // namespace
}  // namespace expertmesh::expert
