#pragma once

// Stop 2: which sequences run in the next step.

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "router_service/engine/kv/page_pool.h"
#include "router_service/engine/sequence.h"
#include "router_service/model/token_batch.h"

namespace expertmesh::router {

struct SchedulerOptions {
  int64_t max_step_tokens = 512;
  int64_t max_sequences = 64;  // running at once, ≤ max_step_tokens
};

// Consecutive tokens of one sequence in a batch.
struct ScheduledChunk {
  Sequence* sequence;
  int64_t first_token;  // index into the batch
  int64_t num_tokens;
};

// Continuous batching. Every running sequence that can decode gets one token a
// step; what is left of the token budget goes to prompts, oldest first, in
// chunks. A sequence is admitted when the pool has pages for all its tokens.
// When a decoding sequence needs a page and none is free, the youngest running
// sequence gives its pages back and is computed again later, which gives the
// same bits. First come, first served. One thread.
class Scheduler {
 public:
  // `pool` must outlive this.
  Scheduler(const SchedulerOptions& options, PagePool* pool);

  void Add(std::unique_ptr<Sequence> sequence);

  // Takes a sequence out, running or waiting, and frees its pages; null where
  // there is none of this id.
  std::unique_ptr<Sequence> Remove(uint64_t id);

  // Fills the next step. Does not advance the sequences: the caller adds
  // num_tokens to num_computed when the step has run.
  void Schedule(TokenBatch* batch, std::vector<ScheduledChunk>* chunks);

  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  bool has_work() const { return !running_.empty() || !waiting_.empty(); }
  int64_t num_preemptions() const { return num_preemptions_; }
  // Any sequence, for ending all of them; requires has_work().
  uint64_t any_id() const;

 private:
  void ScheduleDecodes(int64_t* budget, std::vector<ScheduledChunk>* chunks);
  void SchedulePrefills(int64_t* budget, std::vector<ScheduledChunk>* chunks);
  void Admit(int64_t* budget, std::vector<ScheduledChunk>* chunks);
  // Makes room for the sequence's tokens; false where it was preempted itself.
  bool GrowPages(Sequence* sequence);
  void PreemptYoungest();

  const SchedulerOptions options_;
  PagePool* const pool_;
  std::vector<std::unique_ptr<Sequence>> running_;  // by admission
  std::deque<std::unique_ptr<Sequence>> waiting_;
  int64_t num_preemptions_ = 0;
};

}  // namespace expertmesh::router
