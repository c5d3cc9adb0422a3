#include "router_service/engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;

class SchedulerTest : public ::testing::Test {
 protected:
  void Make(int64_t num_pages, int64_t max_step_tokens,
            int64_t max_sequences = 8) {
    pool_ = std::make_unique<PagePool>(num_pages);
    scheduler_ = std::make_unique<Scheduler>(
        SchedulerOptions{max_step_tokens, max_sequences}, pool_.get());
  }
  void Add(uint64_t id, int64_t prompt_size) {
    auto sequence = std::make_unique<Sequence>();
    sequence->id = id;
    sequence->request.prompt.assign(prompt_size, static_cast<int32_t>(id));
    sequence->tokens = sequence->request.prompt;
    scheduler_->Add(std::move(sequence));
  }
  // Schedules a step and advances as the engine does: a sequence with nothing
  // left to compute gets a token.
  std::vector<std::pair<uint64_t, int64_t>> Step() {
    scheduler_->Schedule(&batch_, &chunks_);
    std::vector<std::pair<uint64_t, int64_t>> out;
    for (const ScheduledChunk& chunk : chunks_) {
      out.emplace_back(chunk.sequence->id, chunk.num_tokens);
      chunk.sequence->num_computed += chunk.num_tokens;
      if (chunk.sequence->num_pending() == 0) {
        chunk.sequence->tokens.push_back(0);
      }
    }
    return out;
  }

  std::unique_ptr<PagePool> pool_;
  std::unique_ptr<Scheduler> scheduler_;
  TokenBatch batch_;
  std::vector<ScheduledChunk> chunks_;
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
  // Its prompt and its tokens so far, all at once.
  EXPECT_THAT(Step(), ElementsAre(Chunk(2, 32)));
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
  EXPECT_EQ(pool_->num_free(), 0);
  scheduler_->Remove(1);
  EXPECT_EQ(pool_->num_free(), 4);
  EXPECT_EQ(scheduler_->Remove(1), nullptr);
  EXPECT_FALSE(scheduler_->has_work());
}

}  // namespace
}  // namespace expertmesh::router
