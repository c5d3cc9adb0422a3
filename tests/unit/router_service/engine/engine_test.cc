#include "router_service/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <limits>
#include <thread>

#include "tests/support/allocation_counter.h"
#include "tests/support/local_engine.h"

namespace expertmesh::testing {
namespace {

using router::FinishReason;
using router::SequenceRequest;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class EngineTest : public ::testing::Test {
 protected:
  void Load(const LocalEngineOptions& options) {
    auto loaded = LocalEngine::Load(
        EXPERTMESH_SOURCE_DIR "/tests/golden/qwen3_moe", options);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    engine_ = *std::move(loaded);
  }
  static SequenceRequest Request(int64_t prompt_size, int64_t max_tokens) {
    SequenceRequest request;
    for (int64_t i = 0; i < prompt_size; ++i) {
      request.prompt.push_back(static_cast<int32_t>(i * 37 % 320));
    }
    request.max_tokens = max_tokens;
    return request;
  }
  absl::Status SubmitStatus(SequenceRequest request) {
    return engine_->engine
        ->Submit(std::move(request), std::make_shared<RecordingSink>())
        .status();
  }

  std::unique_ptr<LocalEngine> engine_;
};

TEST_F(EngineTest, StopsAtMaxTokens) {
  Load({});
  const auto record = engine_->Run(Request(5, 7));
  EXPECT_EQ(record.tokens.size(), 7u);
  EXPECT_EQ(record.reason, FinishReason::kLength);
}

TEST_F(EngineTest, StopsAtAStopIdButNotBeforeMinTokens) {
  Load({});
  const auto free = engine_->Run(Request(5, 12));
  SequenceRequest request = Request(5, 12);
  request.stop_ids = {free.tokens[3]};
  const auto stopped = engine_->Run(request);
  EXPECT_EQ(stopped.reason, FinishReason::kStop);
  // The id may come earlier than place 3, too.
  EXPECT_EQ(stopped.tokens.back(), free.tokens[3]);
  request.min_tokens = 8;
  const auto later = engine_->Run(request);
  EXPECT_GE(later.tokens.size(), 8u);
  for (size_t i = 0; i < 8; ++i) EXPECT_NE(later.tokens[i], free.tokens[3]);
}

TEST_F(EngineTest, TheContextEndsARequest) {
  LocalEngineOptions options;
  options.model.max_context_tokens = 32;
  Load(options);
  const auto record = engine_->Run(Request(20, 1000));
  EXPECT_EQ(record.tokens.size(), 12u);
  EXPECT_EQ(record.reason, FinishReason::kLength);
}

TEST_F(EngineTest, RefusesPromptsThatCannotRun) {
  LocalEngineOptions options;
  options.model.max_context_tokens = 32;
  Load(options);
  EXPECT_EQ(SubmitStatus(Request(32, 1)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(SubmitStatus(Request(31, 1)).ok());
  EXPECT_TRUE(SubmitStatus(Request(32, 0)).ok());
  EXPECT_EQ(SubmitStatus(Request(0, 1)).code(),
            absl::StatusCode::kInvalidArgument);
  SequenceRequest outside = Request(3, 1);
  outside.prompt[1] = 320;
  const absl::Status status = SubmitStatus(outside);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  // Never its value: messages are logged, prompts are not.
  EXPECT_EQ(status.message(),
            "token 2 of the prompt is outside the vocabulary of 320");
}

// Calls back at each token, on the engine's thread, with their number so far.
class CallbackSink final : public router::TokenSink {
 public:
  explicit CallbackSink(std::function<void(int64_t)> on_token)
      : on_token_(std::move(on_token)) {}

  bool OnToken(const router::Sequence& sequence, int32_t,
               const router::TokenLogprob*) override {
    on_token_(sequence.num_generated());
    return true;
  }
  void OnFinish(const router::Sequence&, FinishReason,
                const absl::Status& status) override {
    ended_.set_value(status);
  }
  absl::Status Await() { return ended_.get_future().get(); }

 private:
  const std::function<void(int64_t)> on_token_;
  std::promise<absl::Status> ended_;
};

TEST_F(EngineTest, AFullQueueRefuses) {
  LocalEngineOptions options;
  options.engine.max_queue = 2;
  options.engine.scheduler.max_sequences = 1;
  Load(options);
  std::vector<std::shared_ptr<RecordingSink>> waiting;
  absl::Status status;
  const auto running = std::make_shared<CallbackSink>([&](int64_t num_tokens) {
    // Steps later: the engine has said that it runs.
    if (num_tokens != 3) return;
    for (int i = 0; i < 2; ++i) {
      waiting.push_back(engine_->Submit(Request(5, 3)));
    }
    // One runs, two wait: the next finds no place.
    status = SubmitStatus(Request(5, 3));
  });
  ASSERT_TRUE(engine_->engine->Submit(Request(5, 10), running).ok());
  EXPECT_TRUE(running->Await().ok());
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const auto& sink : waiting) EXPECT_TRUE(sink->Await().status.ok());
}

TEST_F(EngineTest, AFullQueueRefusesWherePagesAreTheLimit) {
  LocalEngineOptions options;
  // None of equal prompts finds what another computed.
  options.engine.prefix_cache = false;
  options.engine.max_queue = 1;
  options.engine.scheduler.max_sequences = 64;
  options.model.kv_cache_tokens = 256;
  options.model.max_context_tokens = 256;
  Load(options);
  // Places are free, pages are not. Tokens come in steps of their own, so what
  // comes at the second token has been left waiting by the third.
  const auto waiting = std::make_shared<RecordingSink>();
  absl::Status first;
  absl::Status second;
  const auto running = std::make_shared<CallbackSink>([&](int64_t num_tokens) {
    if (num_tokens == 2) {
      first = engine_->engine->Submit(Request(200, 1), waiting).status();
    } else if (num_tokens == 3) {
      second = SubmitStatus(Request(200, 1));
    }
  });
  ASSERT_TRUE(engine_->engine->Submit(Request(200, 5), running).ok());
  EXPECT_TRUE(running->Await().ok());
  EXPECT_TRUE(first.ok()) << first;
  EXPECT_EQ(second.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(waiting->Await().status.ok());
}

TEST_F(EngineTest, WhoWaitsForAnothersPageDoesNotFillTheQueue) {
  LocalEngineOptions options;
  options.engine.max_queue = 1;
  options.engine.scheduler.max_sequences = 8;
  options.model.max_step_tokens = 17;  // one page of a prompt a step
  Load(options);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  std::vector<absl::Status> statuses;
  // Two equal prompts come at the second token. By the fourth, a step has
  // begun the first of them and left the second waiting.
  const auto running = std::make_shared<CallbackSink>([&](int64_t num_tokens) {
    const int64_t count = num_tokens == 2 || num_tokens == 4 ? 2 : 0;
    for (int64_t i = 0; i < count; ++i) {
      sinks.push_back(std::make_shared<RecordingSink>());
      statuses.push_back(
          engine_->engine->Submit(Request(200, 1), sinks.back()).status());
    }
  });
  ASSERT_TRUE(engine_->engine->Submit(Request(5, 6), running).ok());
  EXPECT_TRUE(running->Await().ok());
  EXPECT_EQ(statuses.size(), 4u);
  for (const absl::Status& status : statuses)
    EXPECT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < sinks.size(); ++i) {
    if (!statuses[i].ok()) continue;
    EXPECT_TRUE(sinks[i]->Await().status.ok());
  }
}

TEST_F(EngineTest, AHigherPriorityGoesFirst) {
  LocalEngineOptions options;
  options.engine.scheduler.max_sequences = 1;
  Load(options);
  std::vector<int32_t> order;  // on the engine's thread
  std::vector<std::shared_ptr<CallbackSink>> sinks;
  // All wait before the place that they want is free.
  const auto submit_all = [&](int64_t num_tokens) {
    if (num_tokens != 2) return;
    for (const int32_t priority : {-1, 0, 2, 1}) {
      sinks.push_back(std::make_shared<CallbackSink>(
          [&order, priority](int64_t) { order.push_back(priority); }));
      SequenceRequest request = Request(5, 1);
      request.priority = priority;
      EXPECT_TRUE(engine_->engine->Submit(request, sinks.back()).ok());
    }
  };
  const auto running = std::make_shared<CallbackSink>(submit_all);
  ASSERT_TRUE(engine_->engine->Submit(Request(5, 5), running).ok());
  EXPECT_TRUE(running->Await().ok());
  for (const auto& sink : sinks) EXPECT_TRUE(sink->Await().ok());
  EXPECT_THAT(order, ElementsAre(2, 1, 0, -1));
}

TEST_F(EngineTest, AFreePlaceTakesABurstBeforeTheNextStep) {
  LocalEngineOptions options;
  options.engine.max_queue = 1;
  options.engine.scheduler.max_sequences = 8;
  Load(options);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 8; ++i) sinks.push_back(engine_->Submit(Request(5, 20)));
  for (const auto& sink : sinks) EXPECT_TRUE(sink->Await().status.ok());
}

TEST_F(EngineTest, LogitsThatAreNotFiniteFailAScore) {
  Load({});
  auto& norm = engine_->model->weights.final_norm;
  norm.assign(norm.size(), std::numeric_limits<float>::quiet_NaN());
  for (const int64_t max_tokens : {0, 3}) {
    SequenceRequest request = Request(5, max_tokens);
    request.prompt_logprobs = 2;
    const auto record = engine_->Run(request);
    EXPECT_EQ(record.status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(record.status.message()),
                HasSubstr("no finite logit for token 2 of the prompt"));
    EXPECT_TRUE(record.tokens.empty());
    EXPECT_TRUE(record.prompt_logprobs.empty());
  }
  EXPECT_EQ(engine_->Run(Request(5, 3)).status.code(),
            absl::StatusCode::kInternal);
  engine_->engine->Drain(absl::InfiniteDuration());
  EXPECT_EQ(engine_->engine->load().kv_cache_usage_ratio, 0);
}

TEST_F(EngineTest, CancelEndsARequestAndFreesItsPages) {
  LocalEngineOptions options;
  options.model.max_context_tokens = 2048;
  Load(options);
  auto sink = std::make_shared<RecordingSink>();
  const auto id = engine_->engine->Submit(Request(5, 2000), sink);
  ASSERT_TRUE(id.ok());
  sink->AwaitTokens(3);
  engine_->engine->Cancel(*id, absl::CancelledError("gone"));
  const auto record = sink->Await();
  EXPECT_EQ(record.reason, FinishReason::kCancelled);
  EXPECT_LT(record.tokens.size(), 2000u);
  EXPECT_TRUE(engine_->Run(Request(5, 2)).status.ok());
  engine_->engine->Drain(absl::InfiniteDuration());
  EXPECT_EQ(engine_->engine->load().running, 0);
}

TEST_F(EngineTest, TheSinkCanEndARequest) {
  Load({});
  auto sink = std::make_shared<RecordingSink>();
  sink->StopAfter(4);
  ASSERT_TRUE(engine_->engine->Submit(Request(5, 100), sink).ok());
  const auto record = sink->Await();
  EXPECT_EQ(record.reason, FinishReason::kStopped);
  EXPECT_EQ(record.tokens.size(), 4u);
}

TEST_F(EngineTest, DrainRefusesNewRequestsAndFinishesOldOnes) {
  Load({});
  const auto sink = engine_->Submit(Request(5, 40));
  sink->AwaitTokens(1);
  engine_->engine->Drain(absl::InfiniteDuration());
  EXPECT_TRUE(sink->Await().status.ok());
  EXPECT_EQ(SubmitStatus(Request(5, 1)).code(), absl::StatusCode::kUnavailable);
}

TEST_F(EngineTest, DrainEndsWhatIsLeftWithUnavailable) {
  LocalEngineOptions options;
  options.model.max_context_tokens = 2048;
  Load(options);
  const auto sink = engine_->Submit(Request(5, 2000));
  sink->AwaitTokens(1);
  engine_->engine->Drain(absl::ZeroDuration());
  EXPECT_EQ(sink->Await().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(EngineTest, ALostEndpointFailsOnlyRequestsThatNeedIt) {
  LocalEngineOptions options;
  options.model.num_endpoints = 8;  // one expert each
  Load(options);
  const auto healthy = engine_->Run([] {
    SequenceRequest request = Request(1, 1);
    request.expert_counts = true;
    return request;
  }());
  ASSERT_TRUE(healthy.status.ok());
  // An expert this request uses in some layer, and one it never uses.
  int used = -1;
  int unused = -1;
  for (int expert = 0; expert < 8; ++expert) {
    uint32_t rows = 0;
    for (int layer = 0; layer < 3; ++layer) {
      rows += healthy.expert_rows[layer * 8 + expert];
    }
    (rows > 0 ? used : unused) = expert;
  }
  ASSERT_GE(used, 0);
  ASSERT_GE(unused, 0);
  engine_->model->local_transport->SetDown(unused, true);
  EXPECT_EQ(engine_->Run(Request(1, 1)).tokens, healthy.tokens);
  engine_->model->local_transport->SetDown(used, true);
  const auto failed = engine_->Run(Request(1, 1));
  EXPECT_EQ(failed.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(failed.reason, FinishReason::kError);
  engine_->model->local_transport->SetDown(used, false);
  EXPECT_EQ(engine_->Run(Request(1, 1)).tokens, healthy.tokens);
}

// Each expert at an endpoint of its own, and time to wait for it.
class LostExpertTest : public EngineTest {
 protected:
  LostExpertTest() {
    LocalEngineOptions options;
    options.model.num_endpoints = 8;
    options.model.uncovered_timeout = absl::Minutes(5);
    Load(options);
    request_ = Request(6, 4);
    request_.expert_counts = true;
    healthy_ = engine_->Run(request_);
    for (int expert = 0; expert < 8; ++expert) {
      if (RowsOf(expert, healthy_) > RowsOf(busiest_, healthy_)) {
        busiest_ = expert;
      }
    }
  }
  static uint32_t RowsOf(int expert, const RecordingSink::Record& record) {
    uint32_t rows = 0;
    for (int layer = 0; layer < 3; ++layer) {
      rows += record.expert_rows[layer * 8 + expert];
    }
    return rows;
  }
  void SetDown(bool down) {
    engine_->model->local_transport->SetDown(busiest_, down);
  }

  SequenceRequest request_;
  RecordingSink::Record healthy_;
  int busiest_ = 0;
};

TEST_F(LostExpertTest, NextBestAndDropDoWithoutIt) {
  for (const auto& [policy, outcome] :
       {std::pair(router::OverflowPolicy::kNextBest,
                  router::RowOutcome::kRerouted),
        {router::OverflowPolicy::kDrop, router::RowOutcome::kDropped}}) {
    SetDown(true);  // which the first plan does not know
    SequenceRequest request = request_;
    request.policy = policy;
    const auto record = engine_->Run(request);
    ASSERT_TRUE(record.status.ok()) << record.status;
    EXPECT_GT(record.routing[outcome], 0u);
    EXPECT_LT(record.routing.GateMassKept(), 1);
    EXPECT_EQ(RowsOf(busiest_, record), 0u);
    uint32_t rows = record.routing[router::RowOutcome::kDropped];
    for (int expert = 0; expert < 8; ++expert) rows += RowsOf(expert, record);
    EXPECT_EQ(rows, (6u + 3u) * 3u * 2u);
    SetDown(false);
    EXPECT_EQ(engine_->Run(request_).tokens, healthy_.tokens);
  }
}

TEST_F(LostExpertTest, OthersWaitForItAndGetTheirOwnTokens) {
  SetDown(true);
  SequenceRequest next_best = request_;
  next_best.policy = router::OverflowPolicy::kNextBest;
  const auto exact = engine_->Submit(request_);
  const auto changed = engine_->Submit(next_best);
  const auto& transport = *engine_->model->local_transport;
  // It is asked again and again.
  const int64_t before = transport.num_batches();
  while (transport.num_batches() < before + 10) std::this_thread::yield();
  SetDown(false);
  const auto record = exact->Await();
  EXPECT_TRUE(record.status.ok()) << record.status;
  EXPECT_EQ(record.tokens, healthy_.tokens);
  EXPECT_EQ(record.routing.GateMassKept(), 1);
  EXPECT_TRUE(changed->Await().status.ok());
}

TEST_F(LostExpertTest, NextBestWaitsWhereTooFewAreLeft) {
  const auto& transport = *engine_->model->local_transport;
  const auto set_all_down = [this](bool down) {
    for (int expert = 0; expert < 8; ++expert) {
      engine_->model->local_transport->SetDown(expert, down);
    }
  };
  set_all_down(true);
  SequenceRequest request = request_;
  request.policy = router::OverflowPolicy::kNextBest;
  const int64_t before = transport.num_batches();
  const auto sink = engine_->Submit(request);
  while (transport.num_batches() < before + 50) std::this_thread::yield();
  set_all_down(false);
  EXPECT_TRUE(sink->Await().status.ok());
}

TEST_F(LostExpertTest, ACancelledRequestDoesNotWaitForIt) {
  SetDown(true);
  auto sink = std::make_shared<RecordingSink>();
  const auto id = engine_->engine->Submit(request_, sink);
  ASSERT_TRUE(id.ok());
  while (engine_->engine->load().running == 0) std::this_thread::yield();
  engine_->engine->Cancel(*id, absl::CancelledError("gone"));
  const auto record = sink->Await();
  EXPECT_EQ(record.reason, FinishReason::kCancelled);
  EXPECT_EQ(record.status.message(), "gone");
  SetDown(false);
  EXPECT_EQ(engine_->Run(request_).tokens, healthy_.tokens);
}

TEST_F(EngineTest, ANanIsAskedForOnceMoreAndThenFailsOneRequest) {
  Load({});
  const auto healthy = engine_->Run(Request(6, 4));
  ASSERT_TRUE(healthy.status.ok());
  engine_->model->local_transport->Poison(1);
  const auto retried = engine_->Run(Request(6, 4));
  EXPECT_TRUE(retried.status.ok()) << retried.status;
  EXPECT_EQ(retried.tokens, healthy.tokens);
  engine_->model->local_transport->Poison(2);
  const auto failed = engine_->Run(Request(6, 4));
  EXPECT_EQ(failed.status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(failed.status.message()), HasSubstr("not finite"));
  EXPECT_EQ(engine_->Run(Request(6, 4)).tokens, healthy.tokens);
}

TEST_F(EngineTest, AnEndpointThatGivesNansHarmsNobodyWhereThereIsAnother) {
  LocalEngineOptions options;
  options.model.num_endpoints = 2;
  options.model.is_replicated = true;
  Load(options);
  const auto healthy = engine_->Run(Request(60, 20));
  ASSERT_TRUE(healthy.status.ok());
  for (const int endpoint : {0, 1}) {
    engine_->model->local_transport->PoisonEndpoint(endpoint);
    const auto record = engine_->Run(Request(60, 20));
    EXPECT_TRUE(record.status.ok()) << record.status;
    EXPECT_EQ(record.tokens, healthy.tokens);
  }
}

TEST_F(EngineTest, AccountsForEveryAssignment) {
  LocalEngineOptions options;
  // None of equal prompts finds what another computed.
  options.engine.prefix_cache = false;
  options.model.capacity = {
      .capacity_factor = 1.0, .min_capacity = 1, .max_lost_gate_mass = 1};
  Load(options);
  for (const auto policy :
       {router::OverflowPolicy::kWait, router::OverflowPolicy::kNextBest,
        router::OverflowPolicy::kDrop}) {
    SequenceRequest request = Request(40, 4);
    request.policy = policy;
    const auto record = engine_->Run(request);
    uint64_t rows = 0;
    for (const uint32_t count : record.routing.rows) rows += count;
    // 40 prompt tokens and three of the four new ones, 3 layers, top 2.
    EXPECT_EQ(rows, (40u + 3u) * 3u * 2u);
    const bool exact = policy == router::OverflowPolicy::kWait;
    EXPECT_EQ(record.routing.GateMassKept() == 1.0, exact);
  }
}

TEST_F(EngineTest, APreemptedRequestIsAccountedForOnce) {
  LocalEngineOptions options;
  options.engine.prefix_cache = false;  // the two would share all pages
  options.model.kv_cache_tokens = 128;
  options.model.max_context_tokens = 128;
  Load(options);
  const auto older = engine_->Submit(Request(40, 60));
  const auto younger = engine_->Submit(Request(40, 60));
  for (const auto& sink : {older, younger}) {
    const auto record = sink->Await();
    ASSERT_TRUE(record.status.ok()) << record.status;
    EXPECT_EQ(record.routing[router::RowOutcome::kPrimary], (40 + 59) * 3 * 2);
  }
}

TEST_F(EngineTest, WhatAPolicyDropsIsToldAlsoAfterAPreemption) {
  LocalEngineOptions options;
  options.engine.prefix_cache = false;
  options.model.kv_cache_tokens = 128;
  options.model.max_context_tokens = 128;
  options.model.capacity = {
      .capacity_factor = 0.5, .min_capacity = 1, .max_lost_gate_mass = 1};
  Load(options);
  SequenceRequest request = Request(40, 60);
  request.policy = router::OverflowPolicy::kDrop;
  const auto older = engine_->Submit(request);
  const auto younger = engine_->Submit(request);
  uint64_t told = 0;
  for (const auto& sink : {older, younger}) {
    const auto record = sink->Await();
    ASSERT_TRUE(record.status.ok()) << record.status;
    told += record.routing[router::RowOutcome::kDropped];
  }
  constexpr auto kDropped = static_cast<int>(router::RowOutcome::kDropped);
  EXPECT_GT(told, 0u);
  EXPECT_EQ(told, engine_->engine->load().rows[kDropped]);
}

// Counts allocations between two tokens of a request, far enough apart that
// chance would show.
class AllocationSink final : public router::TokenSink {
 public:
  bool OnToken(const router::Sequence& sequence, int32_t,
               const router::TokenLogprob*) override {
    if (sequence.num_generated() == 50) before_ = NumAllocations();
    if (sequence.num_generated() == 150) after_ = NumAllocations();
    return true;
  }
  void OnFinish(const router::Sequence&, FinishReason,
                const absl::Status&) override {
    MutexLock lock(&mutex_);
    ended_ = true;
    changed_.NotifyAll();
  }
  int64_t AwaitDifference() {
    MutexLock lock(&mutex_);
    changed_.Wait(lock, [this] { return ended_; });
    return after_ - before_;
  }

 private:
  int64_t before_ = 0;
  int64_t after_ = -1;
  Mutex mutex_;
  CondVar changed_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

TEST_F(EngineTest, ASteadyStepDoesNotAllocate) {
  LocalEngineOptions options;
  options.model.num_endpoints = 4;
  Load(options);
  auto sink = std::make_shared<AllocationSink>();
  ASSERT_TRUE(engine_->engine->Submit(Request(5, 160), sink).ok());
  // Page lists, of the sequence and of each thread, double now and then as the
  // context grows; a hundred steps of three layers allocate nothing else.
  EXPECT_LE(sink->AwaitDifference(), 32);
}

TEST_F(EngineTest, ASteadyStepSendsOneMessagePerEndpointAndLayer) {
  LocalEngineOptions options;
  options.model.num_endpoints = 1;
  Load(options);
  const auto prefill = engine_->Run(Request(5, 1));
  ASSERT_TRUE(prefill.status.ok());
  EXPECT_EQ(engine_->model->local_transport->num_batches(), 3);
}

}  // namespace
}  // namespace expertmesh::testing
