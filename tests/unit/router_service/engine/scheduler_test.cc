#include "router_service/engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/allocation_counter.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

class SchedulerTest : public ::testing::Test {
 protected:
  void Make(int64_t num_pages, int64_t max_step_tokens,
            int64_t max_sequences = 8) {
    SchedulerOptions options;
    options.max_step_tokens = max_step_tokens;
    options.max_sequences = max_sequences;
    Make(num_pages, options);
  }
  void Make(int64_t num_pages, const SchedulerOptions& options) {
    pages_ = std::make_unique<KvPages>(num_pages, /*keeps_prefixes=*/true);
    scheduler_ = std::make_unique<Scheduler>(options, pages_.get());
  }
  // Prompts are equal where `content` is. The turn is as if each came a second
  // after the one before it.
  Sequence* Add(uint64_t id, int64_t prompt_size, int32_t content = 0,
                absl::Duration ahead = absl::ZeroDuration()) {
    auto sequence = std::make_unique<Sequence>();
    sequence->id = id;
    sequence->turn = absl::Seconds(id) - ahead;
    sequence->request.prompt.assign(
        prompt_size, content > 0 ? content : static_cast<int32_t>(id));
    sequence->tokens = sequence->request.prompt;
    Sequence* added = sequence.get();
    scheduler_->Add(std::move(sequence));
    return added;
  }
  // Schedules a step and advances as the engine does: a sequence with nothing
  // left to compute gets a token.
  std::vector<std::pair<uint64_t, int64_t>> Step() {
    scheduler_->Schedule(&batch_, &chunks_);
    std::vector<std::pair<uint64_t, int64_t>> out;
    for (const ScheduledChunk& chunk : chunks_) {
      out.emplace_back(chunk.sequence->id, chunk.num_tokens);
      const bool is_exact =
          chunk.sequence->request.policy != OverflowPolicy::kDrop;
      scheduler_->Advance(chunk, is_exact ? chunk.num_tokens : 0);
      if (chunk.sequence->num_pending() == 0) {
        chunk.sequence->tokens.push_back(next_token_++);
      }
    }
    scheduler_->OnStep(step_time_);
    return out;
  }

  std::unique_ptr<KvPages> pages_;
  std::unique_ptr<Scheduler> scheduler_;
  TokenBatch batch_;
  std::vector<ScheduledChunk> chunks_;
  int32_t next_token_ = 0;
  absl::Duration step_time_;
};

using Chunk = std::pair<uint64_t, int64_t>;

TEST_F(SchedulerTest, PrefillsInChunksBetweenDecodeSteps) {
  Make(100, 10);
  Add(1, 4);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 4)));
  Add(2, 25);
  // Decode first, the rest of the budget to the prompt.
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 9)));
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 9)));
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 7)));
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 1)));
}

TEST_F(SchedulerTest, FillsTheBatchArrays) {
  Make(100, 20);
  Add(1, 17);
  Step();
  Add(2, 2);
  Step();
  EXPECT_THAT(batch_.token_ids, ElementsAre(0, 2, 2));
  EXPECT_THAT(batch_.positions, ElementsAre(17, 0, 1));
  EXPECT_THAT(batch_.seq_starts, ElementsAre(0, 1, 3));
  // Sequence 1 has pages 0 and 1, sequence 2 page 2.
  EXPECT_THAT(batch_.slot_mapping, ElementsAre(17, 32, 33));
  EXPECT_EQ(batch_.max_blocks, 2);
  EXPECT_THAT(batch_.block_tables, ElementsAre(0, 1, 2, 0));
}

TEST_F(SchedulerTest, AdmitsNoMoreThanMaxSequences) {
  Make(100, 64, 2);
  Add(1, 2);
  Add(2, 2);
  Add(3, 2);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 2), Chunk(2, 2)));
  EXPECT_EQ(scheduler_->num_waiting(), 1);
  EXPECT_EQ(scheduler_->Remove(1)->id, 1u);
  EXPECT_THAT(Step(), ElementsAre(Chunk(2, 1), Chunk(3, 2)));
}

TEST_F(SchedulerTest, WaitsForPagesInOrderOfArrival) {
  Make(2, 64);
  Add(1, 16);
  Add(2, 32);  // needs both pages
  Add(3, 1);   // would fit, but came later
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 16)));
  EXPECT_EQ(scheduler_->num_waiting(), 2);
}

TEST_F(SchedulerTest, PreemptsTheYoungestAndComputesItAgain) {
  Make(3, 64);
  Add(1, 15);
  Add(2, 30);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 15), Chunk(2, 30)));
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 1)));
  // Sequence 1 has 17 tokens now and needs a second page: 2 gives way.
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1)));
  EXPECT_EQ(scheduler_->num_preemptions(), 1);
  EXPECT_EQ(scheduler_->num_waiting(), 1);
  scheduler_->Remove(1);
  // Its prompt and its tokens so far, but for the page that is still there.
  EXPECT_THAT(Step(), ElementsAre(Chunk(2, 16)));
}

TEST_F(SchedulerTest, TheYoungestPreemptsItself) {
  Make(2, 64);
  Add(1, 10);
  Add(2, 16);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 10), Chunk(2, 16)));
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1)));
  EXPECT_EQ(scheduler_->num_preemptions(), 1);
}

TEST_F(SchedulerTest, RemoveFreesPages) {
  Make(4, 64);
  Add(1, 60);
  Step();
  EXPECT_EQ(pages_->num_available(), 0);
  scheduler_->Remove(1);
  EXPECT_EQ(pages_->num_available(), 4);
  EXPECT_EQ(scheduler_->Remove(1), nullptr);
  EXPECT_FALSE(scheduler_->has_work());
}

TEST_F(SchedulerTest, APromptFindsThePagesOfAnEarlierOne) {
  Make(8, 64);
  const Sequence* first = Add(1, 40, 7);
  Step();
  const Sequence* second = Add(2, 40, 7);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 8)));
  EXPECT_EQ(second->num_cached, 32);
  EXPECT_EQ(second->num_accounted, 32);
  EXPECT_EQ(first->pages[1], second->pages[1]);
  EXPECT_EQ(pages_->num_available(), 4);
  EXPECT_EQ(pages_->counts().hit_tokens, 32);
  EXPECT_EQ(pages_->counts().lookup_tokens, 80);
}

TEST_F(SchedulerTest, AWholePageOfAKnownPromptIsComputedForItsLastToken) {
  Make(8, 64);
  Add(1, 32, 7);
  Step();
  Add(2, 32, 7);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 16)));
  // What it computed is known already, so it has its own page no longer: three
  // are in use, of which one begins with the tokens generated by 1.
  EXPECT_EQ(pages_->num_available(), 5);
}

TEST_F(SchedulerTest, CachedPagesMakeRoomForALargerRequest) {
  Make(6, 128);
  Add(1, 64, 7);
  Step();
  // Five pages of its own would not fit beside the four.
  Add(2, 80, 7);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 16)));
}

TEST_F(SchedulerTest, EqualPromptsAreComputedOnce) {
  Make(64, 32);
  for (uint64_t id = 1; id <= 3; ++id) Add(id, 70, 7);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 32)));
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 32)));
  Add(4, 20);  // is not held up
  EXPECT_THAT(Step(),
              ElementsAre(Chunk(1, 6), Chunk(2, 6), Chunk(3, 6), Chunk(4, 14)));
}

TEST_F(SchedulerTest, WhoWaitsForAnothersPageKeepsItsPlace) {
  Make(64, 32, 2);
  Add(1, 70, 7);
  Add(2, 70, 7);
  Add(3, 8);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 32)));
  EXPECT_EQ(scheduler_->num_deferred(), 1);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 32)));
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 6), Chunk(2, 6)));
  EXPECT_EQ(scheduler_->num_deferred(), 0);
}

TEST_F(SchedulerTest, WhoWaitsForAnothersPageKeepsItsPages) {
  // Five pages for the first, one more for the second, and one is left.
  Make(7, 32);
  Add(1, 70, 7);
  Add(2, 70, 7);
  Add(3, 10);
  Add(4, 10);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 22), Chunk(3, 10)));
  EXPECT_THAT(Step(), ElementsAre(Chunk(3, 1), Chunk(1, 31)));
  EXPECT_THAT(Step(), ElementsAre(Chunk(3, 1), Chunk(1, 17)));
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(3, 1), Chunk(2, 6)));
}

TEST_F(SchedulerTest, WhatWasFoundButNotUsedIsNotCached) {
  Make(11, 3, 3);
  Add(1, 48, 7);
  for (int i = 0; i < 16; ++i) Step();
  scheduler_->Remove(1);
  Add(2, 15);
  for (int i = 0; i < 5; ++i) Step();
  Add(3, 40);
  const Sequence* sequence = Add(4, 100, 7);
  EXPECT_THAT(Step(), ElementsAre(Chunk(2, 1), Chunk(3, 2)));
  EXPECT_EQ(sequence->num_cached, 48);
  // Sequence 2 needs a page more: 4 gives way before it has computed anything.
  EXPECT_THAT(Step(), ElementsAre(Chunk(2, 1), Chunk(3, 2)));
  EXPECT_EQ(scheduler_->num_preemptions(), 1);
  EXPECT_EQ(sequence->num_cached, 0);
  EXPECT_EQ(sequence->num_accounted, 0);
}

TEST_F(SchedulerTest, OneThatMayMixAwaitsNoneThatMayNot) {
  Make(100, 128);
  Add(1, 48, 7);
  Add(2, 48, 7)->may_mix = true;
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 48), Chunk(2, 48)));
  EXPECT_EQ(std::count(batch_.may_mix.begin(), batch_.may_mix.end(), 1), 48);
  EXPECT_EQ(batch_.may_mix[47], 0);
  EXPECT_EQ(batch_.may_mix[48], 1);
  // Each finds the pages of its own kind.
  Add(3, 48, 7);
  Add(4, 48, 7)->may_mix = true;
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 1), Chunk(3, 16),
                                  Chunk(4, 16)));
  EXPECT_NE(chunks_[2].sequence->pages[0], chunks_[3].sequence->pages[0]);
}

TEST_F(SchedulerTest, ManyEqualPromptsLetAnotherPass) {
  Make(200, 32, 64);
  for (uint64_t id = 1; id <= 40; ++id) Add(id, 70, 7);
  Add(41, 8);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 24), Chunk(41, 8)));
  EXPECT_EQ(scheduler_->num_deferred(), 39);
}

TEST_F(SchedulerTest, WhoeverWaitedGoesOnAloneWhenTheOtherIsGone) {
  Make(64, 32);
  Add(1, 70, 7);
  Add(2, 70, 7);
  Step();
  scheduler_->Remove(1);
  EXPECT_THAT(Step(), ElementsAre(Chunk(2, 32)));
}

TEST_F(SchedulerTest, WhatAPolicyChangedIsNotShared) {
  Make(64, 256);
  Add(1, 40, 7)->request.policy = OverflowPolicy::kDrop;
  Step();
  Add(2, 40, 7);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 40)));
  EXPECT_EQ(pages_->num_kept(), 2);
}

TEST_F(SchedulerTest, ForgottenPrefixesAreComputedAgain) {
  Make(64, 256);
  Add(1, 40, 7);
  Step();
  scheduler_->ForgetPrefixes();
  Add(2, 40, 7);
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 40)));
}

TEST_F(SchedulerTest, PromptsToBeScoredOrCountedAreComputedWhole) {
  Make(64, 256);
  Add(1, 40, 7);
  Step();
  Add(2, 40, 7)->request.prompt_logprobs = 0;
  Add(3, 40, 7)->request.expert_counts = true;
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 40), Chunk(3, 40)));
}

TEST_F(SchedulerTest, AScoredPartNeedNotBeComputedAgain) {
  Make(64, 256);
  Add(1, 60, 7);
  Step();
  Sequence* sequence = Add(2, 60, 7);
  sequence->request.prompt_logprobs = 0;
  sequence->prompt_logprobs.resize(40);  // before it was preempted
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 28)));
}

TEST_F(SchedulerTest, AShortPromptPassesALongOne) {
  Make(1000, 32);
  Add(1, 1000);
  Step();
  Add(2, 12);
  Add(3, 500);
  // Half a step to the one that came first, the other to the shortest.
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 16), Chunk(2, 12), Chunk(3, 4)));
}

TEST_F(SchedulerTest, ALongPromptGoesOnUnderAStreamOfShortOnes) {
  Make(1000, 32);
  const Sequence* first = Add(1, 320);
  for (uint64_t id = 2; id < 22; ++id) {
    Add(id, 32);
    Step();
    scheduler_->Remove(id);
  }
  EXPECT_GE(first->num_computed, 20 * 16);
}

TEST_F(SchedulerTest, HigherPrioritiesGoFirst) {
  Make(2, 64);
  Add(1, 16);
  Step();
  Add(2, 30);
  Add(3, 30, 0, absl::Seconds(10));
  scheduler_->Remove(1);
  EXPECT_THAT(Step(), ElementsAre(Chunk(3, 30)));
}

TEST_F(SchedulerTest, APriorityIsWorthNoMoreThanItsTime) {
  Make(1, 64);
  Add(1, 16);
  // Each of higher priority, and the first that came too late passes nobody.
  for (uint64_t id = 2; id < 9; ++id) Add(id, 16, 0, absl::Seconds(5));
  std::vector<uint64_t> order;
  while (scheduler_->has_work()) {
    order.push_back(Step().front().first);
    scheduler_->Remove(order.back());
  }
  EXPECT_THAT(order, ElementsAre(2, 3, 4, 5, 1, 6, 7, 8));
}

TEST_F(SchedulerTest, PreemptionTakesTheLowestPriorityThenTheYoungest) {
  Make(4, 64);
  Add(1, 15, 0, absl::Seconds(10));
  Add(2, 14);
  Add(3, 14);
  Add(4, 14, 0, absl::Seconds(10));
  Step();
  std::vector<uint64_t> left = {1, 4, 2, 3};
  for (int preemptions = 0; preemptions < 3;) {
    const auto chunks = Step();
    if (scheduler_->num_preemptions() == preemptions) continue;
    preemptions = static_cast<int>(scheduler_->num_preemptions());
    left.resize(4 - preemptions);
    std::vector<uint64_t> running;
    for (const auto& [id, tokens] : chunks) running.push_back(id);
    EXPECT_THAT(running, ElementsAreArray(left));
  }
}

TEST_F(SchedulerTest, ABigRequestIsNotOvertakenBySmallOnes) {
  Make(8, 256);
  Add(1, 64);
  Step();
  Add(2, 128);  // all pages
  for (uint64_t id = 3; id < 10; ++id) {
    Add(id, 8);
    for (const auto& [running, tokens] : Step()) EXPECT_EQ(running, 1u);
  }
  scheduler_->Remove(1);
  EXPECT_THAT(Step(), ElementsAre(Chunk(2, 128)));
}

TEST_F(SchedulerTest, LateStepsLeavePrefillItsFloor) {
  SchedulerOptions options;
  options.max_step_tokens = 256;
  options.target_inter_token_latency = absl::Milliseconds(20);
  Make(1000, options);
  step_time_ = absl::Milliseconds(100);
  Add(1, 4);
  Add(2, 4000);
  // Nobody decodes yet, so the whole step is used.
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 4), Chunk(2, 252)));
  for (int i = 0; i < 10; ++i) Step();
  EXPECT_THAT(Step(), ElementsAre(Chunk(1, 1), Chunk(2, 16)));
  EXPECT_EQ(scheduler_->prefill_budget(), 16);
  step_time_ = absl::Milliseconds(1);
  for (int i = 0; i < 3; ++i) Step();
  EXPECT_GT(scheduler_->prefill_budget(), 16);
  scheduler_->Remove(1);
  EXPECT_THAT(Step(), ElementsAre(Chunk(2, 256)));
}

TEST_F(SchedulerTest, AWarmStepAllocatesNothing) {
  Make(1000, 64, 16);
  for (uint64_t id = 1; id <= 8; ++id) {
    Sequence* sequence = Add(id, 40, 7);
    sequence->tokens.reserve(1000);
    sequence->pages.reserve(100);
  }
  Add(9, 3000);
  const auto step = [this] {
    scheduler_->Schedule(&batch_, &chunks_);
    for (const ScheduledChunk& chunk : chunks_) {
      scheduler_->Advance(chunk, chunk.num_tokens);
      if (chunk.sequence->num_pending() == 0) {
        chunk.sequence->tokens.push_back(next_token_++);
      }
    }
  };
  // As after a batch with a context as long as any in this test.
  batch_.block_tables.reserve(9 * 200);
  for (int i = 0; i < 10; ++i) step();
  ASSERT_EQ(scheduler_->num_running(), 9);
  const int64_t before = NumAllocations();
  for (int i = 0; i < 40; ++i) step();
  EXPECT_EQ(NumAllocations(), before);
}

}  // namespace
}  // namespace expertmesh::router
