#include "router_service/engine/scheduler.h"

#include <algorithm>

#include "services/linalg/attention.h"

namespace expertmesh::router {
namespace {

int64_t PagesFor(int64_t num_tokens) {
  return (num_tokens + kPageTokens - 1) / kPageTokens;
}

void AppendChunk(Sequence* sequence, int64_t num_tokens, int64_t* budget,
                 std::vector<ScheduledChunk>* chunks) {
  chunks->push_back({sequence, 0, num_tokens});
  *budget -= num_tokens;
}

// Flattens the chosen chunks.
void FillBatch(std::vector<ScheduledChunk>* chunks, TokenBatch* batch) {
  batch->Clear();
  size_t max_blocks = 0;
  for (const ScheduledChunk& chunk : *chunks) {
    max_blocks = std::max(max_blocks, chunk.sequence->pages.size());
  }
  batch->max_blocks = static_cast<int32_t>(max_blocks);
  for (ScheduledChunk& chunk : *chunks) {
    const Sequence& sequence = *chunk.sequence;
    chunk.first_token = batch->num_tokens();
    for (int64_t i = 0; i < chunk.num_tokens; ++i) {
      const int64_t position = sequence.num_computed + i;
      batch->token_ids.push_back(sequence.tokens[position]);
      batch->positions.push_back(static_cast<int32_t>(position));
      batch->slot_mapping.push_back(
          sequence.pages[position / kPageTokens] * kPageTokens +
          static_cast<int32_t>(position % kPageTokens));
      // What is computed again after a preemption was accounted for the first
      // time; no policy may change it beyond that.
      batch->policy.push_back(position < sequence.num_accounted
                                  ? OverflowPolicy::kWait
                                  : sequence.request.policy);
    }
    batch->seq_starts.push_back(static_cast<int32_t>(batch->num_tokens()));
    batch->block_tables.insert(batch->block_tables.end(),
                               sequence.pages.begin(), sequence.pages.end());
    batch->block_tables.resize(batch->num_seqs() * max_blocks, 0);
  }
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, PagePool* pool)
    : options_(options), pool_(pool) {}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  waiting_.push_back(std::move(sequence));
}

std::unique_ptr<Sequence> Scheduler::Remove(uint64_t id) {
  const auto has_id = [id](const std::unique_ptr<Sequence>& sequence) {
    return sequence->id == id;
  };
  std::unique_ptr<Sequence> removed;
  if (auto it = std::find_if(running_.begin(), running_.end(), has_id);
      it != running_.end()) {
    removed = std::move(*it);
    running_.erase(it);
    pool_->Free(&removed->pages);
  } else if (auto it = std::find_if(waiting_.begin(), waiting_.end(), has_id);
             it != waiting_.end()) {
    removed = std::move(*it);
    waiting_.erase(it);
  }
  return removed;
}

uint64_t Scheduler::any_id() const {
  return running_.empty() ? waiting_.front()->id : running_.back()->id;
}

void Scheduler::Schedule(TokenBatch* batch,
                         std::vector<ScheduledChunk>* chunks) {
  int64_t budget = options_.max_step_tokens;
  chunks->clear();
  ScheduleDecodes(&budget, chunks);
  SchedulePrefills(&budget, chunks);
  Admit(&budget, chunks);
  FillBatch(chunks, batch);
}

void Scheduler::ScheduleDecodes(int64_t* budget,
                                std::vector<ScheduledChunk>* chunks) {
  // Preemption takes from the back, so it never takes a sequence that this loop
  // has already scheduled.
  for (size_t i = 0; i < running_.size() && *budget > 0; ++i) {
    Sequence* sequence = running_[i].get();
    if (sequence->num_pending() != 1) continue;
    if (GrowPages(sequence)) AppendChunk(sequence, 1, budget, chunks);
  }
}

void Scheduler::SchedulePrefills(int64_t* budget,
                                 std::vector<ScheduledChunk>* chunks) {
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    if (*budget == 0) return;
    if (sequence->num_pending() <= 1) continue;
    AppendChunk(sequence.get(), std::min(*budget, sequence->num_pending()),
                budget, chunks);
  }
}

void Scheduler::Admit(int64_t* budget, std::vector<ScheduledChunk>* chunks) {
  while (*budget > 0 && !waiting_.empty() &&
         num_running() < options_.max_sequences) {
    Sequence* sequence = waiting_.front().get();
    // Pages for all tokens at once: a prefill, once begun, never waits for one.
    if (!pool_->Allocate(PagesFor(sequence->size()), &sequence->pages)) return;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    AppendChunk(sequence, std::min(*budget, sequence->num_pending()), budget,
                chunks);
  }
}

bool Scheduler::GrowPages(Sequence* sequence) {
  const int64_t missing =
      PagesFor(sequence->size()) - static_cast<int64_t>(sequence->pages.size());
  while (missing > 0 && !pool_->Allocate(missing, &sequence->pages)) {
    const bool is_youngest = running_.back().get() == sequence;
    PreemptYoungest();
    if (is_youngest) return false;
  }
  return true;
}

void Scheduler::PreemptYoungest() {
  std::unique_ptr<Sequence> youngest = std::move(running_.back());
  running_.pop_back();
  pool_->Free(&youngest->pages);
  youngest->num_computed = 0;
  waiting_.push_front(std::move(youngest));
  ++num_preemptions_;
}

}  // namespace expertmesh::router
