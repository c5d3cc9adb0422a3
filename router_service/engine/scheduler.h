#pragma once

// Stop 2: which sequences run in the next step.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "router_service/engine/kv/kv_pages.h"
#include "router_service/engine/prefill_budget.h"
#include "router_service/engine/sequence.h"
#include "router_service/model/token_batch.h"

namespace expertmesh::router {

struct SchedulerOptions {
  int64_t max_step_tokens = 512;
  int64_t max_sequences = 64;  // running at once, ≤ max_step_tokens
  // Of a step that decodes; prefill that joins it gives way. Zero: no target.
  absl::Duration target_inter_token_latency;
};

// Consecutive tokens of one sequence in a batch.
struct ScheduledChunk {
  Sequence* sequence;
  int64_t first_token;  // index into the batch
  int64_t num_tokens;
};

// Continuous batching. Sequences have one order, by `turn` and then by id, for
// whatever is scarce; it never changes, so whoever comes later by more than its
// priority is worth cannot go first, and nobody starves.
//
//   decode     Every running sequence that can decode gets one token a step.
//   pages      When one of them needs a page and none is available, the last
//              running sequence in the order gives back its pages and waits; it
//              is computed again later, to the same bits, or finds its pages.
//   admission  In the order, while there are places, and pages for all tokens
//              of a sequence. Nobody goes ahead of one that lacks pages. One
//              whose next page a sequence ahead of it is computing is deferred
//              until that one has come to where they differ. Its place and the
//              pages it will want besides are kept; what is left goes to
//              others meanwhile.
//   prefill    What decodes leave of the step, or less (PrefillBudget): half in
//              the order, so that long prompts go on, and half to those that
//              have fewest tokens left, so that they do not block short ones.
//
// Sequences with exact keys and values share pages (KvPages). One thread; once
// warm, a step that admits nobody allocates nothing.
class Scheduler {
 public:
  // `pages` must outlive this.
  Scheduler(const SchedulerOptions& options, KvPages* pages);

  void Add(std::unique_ptr<Sequence> sequence);

  // Takes a sequence out, running or waiting, and frees its pages; null where
  // there is none of this id.
  std::unique_ptr<Sequence> Remove(uint64_t id);

  // Fills the next step. Does not advance the sequences.
  void Schedule(TokenBatch* batch, std::vector<ScheduledChunk>* chunks);

  // A chunk of the step has been computed. `num_exact` of its tokens, the
  // first, and all before them in the step were routed as the gate chose.
  void Advance(const ScheduledChunk& chunk, int64_t num_exact);

  // The whole step has run and took so long.
  void OnStep(absl::Duration duration);

  // What has been computed so far must not be shared with anybody new.
  void ForgetPrefixes();

  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  // Of those waiting, who have a place (see above), as the last step saw it.
  int64_t num_deferred() const { return num_deferred_; }
  bool has_work() const { return !running_.empty() || !waiting_.empty(); }
  int64_t num_preemptions() const { return num_preemptions_; }
  int64_t prefill_budget() const { return prefill_budget_.tokens(); }
  // Any sequence, for ending all of them; requires has_work().
  uint64_t any_id() const;

 private:
  enum class Admission { kAdmitted, kDeferred, kNoPages };

  void ScheduleDecodes(std::vector<ScheduledChunk>* chunks);
  void SchedulePrefills(int64_t budget, std::vector<ScheduledChunk>* chunks);
  void Admit();
  bool HasPlace() const {
    return num_running() + num_deferred_ < options_.max_sequences;
  }
  Admission TakePages(Sequence* sequence);
  // Keeps a place and pages for a sequence that awaits another.
  Admission Defer(const Sequence& sequence);
  // Tokens of the sequence that need not be computed if they are found.
  int64_t NumReusable(const Sequence& sequence) const;
  // Looks for a sequence ahead that is about to share the page after the first
  // `num_found` of the `num_reusable` tokens, and has it awaited. False: none.
  bool FindAwaited(int64_t num_found, int64_t num_reusable,
                   Sequence* sequence) const;
  // Whether the one awaited is still computing what this one will share.
  bool IsAwaiting(const Sequence& sequence) const;
  // Makes room for the sequence's tokens; false where it was preempted itself.
  bool GrowPages(Sequence* sequence);
  void PreemptLast();

  const SchedulerOptions options_;
  KvPages* const pages_;
  PrefillBudget prefill_budget_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in the order
  std::vector<std::unique_ptr<Sequence>> waiting_;  // in the opposite one
  std::vector<Sequence*> prefills_;                 // scratch
  std::vector<Sequence*> shortest_;                 // scratch
  int64_t num_decodes_ = 0;                         // of the step
  int64_t num_prefill_tokens_ = 0;                  // likewise
  int64_t num_deferred_ = 0;                        // likewise
  int64_t num_reserved_pages_ = 0;                  // likewise, for them
  int64_t num_preemptions_ = 0;
};

}  // namespace expertmesh::router
