#include "router_service/engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "services/linalg/attention.h"

namespace expertmesh::router {
namespace {

bool IsAhead(const Sequence& a, const Sequence& b) {
  return a.order() < b.order();
}

// Whether others find what it computes next.
bool IsExact(const Sequence& sequence) {
  return sequence.num_exact == sequence.num_computed &&
         sequence.request.policy == OverflowPolicy::kWait;
}

// Under which its pages are found.
int32_t RootOf(const Sequence& sequence) {
  return sequence.may_mix ? PrefixIndex::kMixedRoot : PrefixIndex::kRoot;
}

// Gives as much of the budget as they need to one after the other; returns what
// is left.
int64_t Grant(const std::vector<Sequence*>& sequences, int64_t budget) {
  for (Sequence* sequence : sequences) {
    const int64_t granted =
        std::min(budget, sequence->num_pending() - sequence->chunk_tokens);
    sequence->chunk_tokens += granted;
    budget -= granted;
  }
  return budget;
}

// Pages that the chunk's tokens see.
int64_t NumVisiblePages(const ScheduledChunk& chunk) {
  return PagesFor(chunk.sequence->num_computed + chunk.num_tokens);
}

// Flattens the chosen chunks.
void FillBatch(std::vector<ScheduledChunk>* chunks, TokenBatch* batch) {
  batch->Clear();
  int64_t max_blocks = 0;
  for (const ScheduledChunk& chunk : *chunks) {
    max_blocks = std::max(max_blocks, NumVisiblePages(chunk));
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
      batch->may_mix.push_back(sequence.may_mix ? 1 : 0);
    }
    batch->seq_starts.push_back(static_cast<int32_t>(batch->num_tokens()));
    batch->block_tables.insert(batch->block_tables.end(),
                               sequence.pages.begin(),
                               sequence.pages.begin() + NumVisiblePages(chunk));
    batch->block_tables.resize(batch->num_seqs() * max_blocks, 0);
  }
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, KvPages* pages)
    : options_(options),
      pages_(pages),
      prefill_budget_(options.target_inter_token_latency,
                      options.max_step_tokens) {}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  const auto place = std::upper_bound(
      waiting_.begin(), waiting_.end(), sequence,
      [](const auto& a, const auto& b) { return IsAhead(*b, *a); });
  waiting_.insert(place, std::move(sequence));
}

std::unique_ptr<Sequence> Scheduler::Remove(uint64_t id) {
  for (auto* sequences : {&running_, &waiting_}) {
    const auto it =
        std::find_if(sequences->begin(), sequences->end(),
                     [id](const auto& sequence) { return sequence->id == id; });
    if (it == sequences->end()) continue;
    std::unique_ptr<Sequence> removed = std::move(*it);
    sequences->erase(it);
    pages_->Release(&removed->pages);
    return removed;
  }
  return nullptr;
}

uint64_t Scheduler::any_id() const {
  return running_.empty() ? waiting_.front()->id : running_.back()->id;
}

void Scheduler::Schedule(TokenBatch* batch,
                         std::vector<ScheduledChunk>* chunks) {
  chunks->clear();
  for (const auto& sequence : running_) sequence->chunk_tokens = 0;
  ScheduleDecodes(chunks);
  num_decodes_ = static_cast<int64_t>(chunks->size());
  Admit();
  int64_t budget = options_.max_step_tokens - num_decodes_;
  if (num_decodes_ > 0) budget = std::min(budget, prefill_budget_.tokens());
  SchedulePrefills(budget, chunks);
  FillBatch(chunks, batch);
  num_prefill_tokens_ = batch->num_tokens() - num_decodes_;
}

void Scheduler::ScheduleDecodes(std::vector<ScheduledChunk>* chunks) {
  // Preemption takes from the back, so it never takes a sequence that this loop
  // has already scheduled.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* sequence = running_[i].get();
    if (sequence->num_pending() != 1 || !GrowPages(sequence)) continue;
    sequence->chunk_tokens = 1;
    chunks->push_back({sequence, 0, 1});
  }
}

void Scheduler::SchedulePrefills(int64_t budget,
                                 std::vector<ScheduledChunk>* chunks) {
  prefills_.clear();
  for (const auto& sequence : running_) {
    if (sequence->chunk_tokens == 0) prefills_.push_back(sequence.get());
  }
  shortest_ = prefills_;
  std::sort(shortest_.begin(), shortest_.end(),
            [](const Sequence* a, const Sequence* b) {
              return a->num_pending() != b->num_pending()
                         ? a->num_pending() < b->num_pending()
                         : a->id < b->id;
            });
  const int64_t by_size = budget / 2;
  const int64_t left = Grant(prefills_, budget - by_size);
  Grant(shortest_, by_size + left);
  for (Sequence* sequence : prefills_) {
    if (sequence->chunk_tokens == 0) continue;
    chunks->push_back({sequence, 0, sequence->chunk_tokens});
  }
}

void Scheduler::Admit() {
  num_deferred_ = num_reserved_pages_ = 0;
  for (size_t i = waiting_.size(); i-- > 0 && HasPlace();) {
    Sequence* candidate = waiting_[i].get();
    const Admission admission =
        IsAwaiting(*candidate) ? Defer(*candidate) : TakePages(candidate);
    if (admission == Admission::kNoPages) return;
    if (admission == Admission::kDeferred) continue;
    std::unique_ptr<Sequence> sequence = std::move(waiting_[i]);
    waiting_.erase(waiting_.begin() + static_cast<int64_t>(i));
    const auto place = std::upper_bound(
        running_.begin(), running_.end(), sequence,
        [](const auto& a, const auto& b) { return IsAhead(*a, *b); });
    running_.insert(place, std::move(sequence));
  }
}

Scheduler::Admission Scheduler::Defer(const Sequence& sequence) {
  // The one awaited holds the pages that they will share.
  const int64_t num_pages =
      PagesFor(sequence.size()) - sequence.num_awaited / kPageTokens;
  if (num_pages > pages_->num_available() - num_reserved_pages_) {
    return Admission::kNoPages;
  }
  num_reserved_pages_ += num_pages;
  ++num_deferred_;
  return Admission::kDeferred;
}

Scheduler::Admission Scheduler::TakePages(Sequence* sequence) {
  const int64_t num_reusable = NumReusable(*sequence);
  // Pages for all tokens at once: a prefill, once begun, never waits for one.
  const int64_t num_pages = PagesFor(sequence->size());
  if (num_pages - num_reusable / kPageTokens >
      pages_->num_available() - num_reserved_pages_) {
    return Admission::kNoPages;
  }
  const int64_t found =
      pages_->TakePrefix(absl::MakeConstSpan(sequence->tokens)
                             .first(static_cast<size_t>(num_reusable)),
                         &sequence->pages, RootOf(*sequence));
  if (FindAwaited(found, num_reusable, sequence)) {
    pages_->Release(&sequence->pages);
    return Defer(*sequence);
  }
  const int64_t missing = num_pages - found / kPageTokens;
  if (missing > pages_->num_available() - num_reserved_pages_ ||
      !pages_->Allocate(missing, &sequence->pages)) {
    pages_->Release(&sequence->pages);
    return Admission::kNoPages;
  }
  pages_->CountLookup(sequence->size(), found);
  sequence->num_computed = sequence->num_exact = found;
  sequence->num_shared_pages = found / kPageTokens;
  sequence->num_newly_cached =
      std::max<int64_t>(0, found - sequence->num_accounted);
  sequence->num_cached += sequence->num_newly_cached;
  sequence->num_accounted += sequence->num_newly_cached;
  sequence->chunk_tokens = 0;
  return Admission::kAdmitted;
}

int64_t Scheduler::NumReusable(const Sequence& sequence) const {
  if (!pages_->keeps_prefixes()) return 0;
  const SequenceRequest& request = sequence.request;
  // The last token's logits are always wanted, and so are those of tokens that
  // are still to be scored.
  int64_t reusable = sequence.size() - 1;
  const auto num_scored = static_cast<int64_t>(sequence.prompt_logprobs.size());
  if (request.prompt_logprobs && num_scored < sequence.prompt_size() - 1) {
    reusable = std::min(reusable, num_scored);
  }
  // What is counted must be routed for this request.
  if (request.expert_counts) {
    reusable = std::min(reusable, sequence.num_accounted);
  }
  return reusable / kPageTokens * kPageTokens;
}

bool Scheduler::FindAwaited(int64_t num_found, int64_t num_reusable,
                            Sequence* sequence) const {
  sequence->num_awaited = 0;
  if (num_found == num_reusable) return false;
  const int64_t index = num_found / kPageTokens;
  for (const auto& other : running_) {
    if (!IsAhead(*other, *sequence)) return false;
    // Known pages are the same pages where the prefixes are the same.
    if (!IsExact(*other) || other->may_mix != sequence->may_mix ||
        other->num_computed < num_found ||
        other->num_computed >= num_found + kPageTokens ||
        (index > 0 && other->pages[index - 1] != sequence->pages[index - 1])) {
      continue;
    }
    const auto first = sequence->tokens.begin() + num_found;
    const int64_t num_alike =
        std::mismatch(first, sequence->tokens.begin() + num_reusable,
                      other->tokens.begin() + num_found, other->tokens.end())
            .first -
        first;
    if (num_alike < kPageTokens) continue;
    sequence->awaited = other->order();
    sequence->num_awaited = (num_found + num_alike) / kPageTokens * kPageTokens;
    return true;
  }
  return false;
}

bool Scheduler::IsAwaiting(const Sequence& sequence) const {
  if (sequence.num_awaited == 0) return false;
  const auto other = std::lower_bound(
      running_.begin(), running_.end(), sequence.awaited,
      [](const auto& a, const SequenceOrder& b) { return a->order() < b; });
  return other != running_.end() && (*other)->order() == sequence.awaited &&
         IsExact(**other) && (*other)->num_computed < sequence.num_awaited;
}

bool Scheduler::GrowPages(Sequence* sequence) {
  const int64_t missing =
      PagesFor(sequence->size()) - static_cast<int64_t>(sequence->pages.size());
  while (missing > 0 && !pages_->Allocate(missing, &sequence->pages)) {
    const bool is_last = running_.back().get() == sequence;
    PreemptLast();
    if (is_last) return false;
  }
  return true;
}

void Scheduler::PreemptLast() {
  std::unique_ptr<Sequence> last = std::move(running_.back());
  running_.pop_back();
  pages_->Release(&last->pages);
  last->num_computed = last->num_exact = last->num_shared_pages = 0;
  // What was found and not yet used may be gone when it is admitted again.
  last->num_cached -= last->num_newly_cached;
  last->num_accounted -= last->num_newly_cached;
  last->num_newly_cached = 0;
  Add(std::move(last));
  ++num_preemptions_;
}

void Scheduler::Advance(const ScheduledChunk& chunk, int64_t num_exact) {
  Sequence& sequence = *chunk.sequence;
  if (sequence.num_exact == sequence.num_computed) {
    sequence.num_exact += num_exact;
  }
  sequence.num_computed += chunk.num_tokens;
  sequence.num_newly_cached = 0;
  const int64_t num_full = sequence.num_exact / kPageTokens;
  for (int64_t& page = sequence.num_shared_pages; page < num_full; ++page) {
    pages_->Share(absl::MakeConstSpan(sequence.tokens)
                      .subspan(page * kPageTokens, kPageTokens),
                  page, &sequence.pages, RootOf(sequence));
  }
}

void Scheduler::OnStep(absl::Duration duration) {
  if (num_decodes_ > 0) prefill_budget_.OnStep(num_prefill_tokens_, duration);
}

void Scheduler::ForgetPrefixes() {
  pages_->Forget();
  // Behind its computed tokens, so that none of the next count as exact.
  for (const auto& sequence : running_) sequence->num_exact = -1;
}

}  // namespace expertmesh::router
