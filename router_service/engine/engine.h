#pragma once

// The step loop.

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "router_service/engine/engine_metrics.h"
#include "router_service/engine/expert_load.h"
#include "router_service/engine/kv/kv_pages.h"
#include "router_service/engine/scheduler.h"
#include "router_service/engine/step_logits.h"
#include "router_service/engine/step_routing.h"
#include "router_service/model/kv_cache.h"
#include "router_service/model/transformer.h"
#include "services/core/clock.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

struct EngineOptions {
  SchedulerOptions scheduler;
  int64_t max_context_tokens = 0;  // prompt and output of one request
  int64_t max_queue = 256;         // requests waiting
  // Waiting that is worth one priority: a request of priority p is treated as
  // if it had come p times this earlier.
  absl::Duration priority_step = absl::Seconds(10);
  bool prefix_cache = true;  // requests share the pages of equal prefixes
  // Rows of requests that are not exact may go to services of any numerics_id.
  bool mix_numerics = false;
  bool counts_expert_rows = false;  // for ExpertLoad::Totals
};

// Runs requests through the model, many at a time. Owns the engine thread,
// which alone touches sequences, the transformer and the KV cache; the public
// methods are thread-safe and never wait for a step.
class Engine {
 public:
  // References and pointers must outlive this.
  Engine(const EngineOptions& options, const ModelConfig& config,
         Transformer* transformer, KvCache* cache, WorkerPool* pool,
         const EngineMetrics& metrics, const Clock* clock);
  ~Engine();  // Stop

  // Queues a request; `sink` hears of its tokens. Returns an id for Cancel.
  // Errors (the sink is not called): INVALID_ARGUMENT for a prompt that is
  // empty, too long, or has ids outside the vocabulary; RESOURCE_EXHAUSTED for
  // a full queue; UNAVAILABLE once draining.
  absl::StatusOr<uint64_t> Submit(SequenceRequest request,
                                  std::shared_ptr<TokenSink> sink);

  // Ends a request at the next step boundary with `status`; unknown ids are
  // ignored. A step does not wait for experts that nobody serves on its behalf.
  void Cancel(uint64_t id, absl::Status status);

  // From the next step on.
  void SetCapacity(const CapacityOptions& capacity);

  // From the next step on, requests share no keys and values with earlier ones.
  // For when those would have other bits now. What a step under way shares
  // goes with the rest, before anybody finds it.
  void ForgetPrefixes();

  // Refuses new requests and waits until the others have finished or `timeout`
  // has passed; those left end with UNAVAILABLE. Then the engine thread ends.
  void Drain(absl::Duration timeout);

  struct Load {
    int64_t running = 0;
    int64_t waiting = 0;
    int64_t deferred = 0;  // of these, with a place (Scheduler)
    double kv_cache_usage_ratio = 0;
    std::array<uint64_t, kNumRowOutcomes> rows = {};  // since the start
  };
  Load load() const;
  const ExpertLoad& expert_load() const { return expert_load_; }

 private:
  struct Cancellation {
    uint64_t id;
    absl::Status status;
  };

  void Run();
  // Takes what arrived; blocks while there is nothing to do. False: stop.
  bool TakeInbox();
  void Step();
  // Has the chunk's rows carry its request's trace.
  void Trace(const ScheduledChunk& chunk);
  // Moves chunks on by the step, and fails sequences whose rows did not come.
  void Advance();
  void Deliver(const StepLogits::Row& row, StepLogits::Result& result);
  void DeliverToken(Sequence* sequence, StepLogits::Result& result);
  // Ends requests whose prompt could not be scored.
  void FailPrompts();
  // Ends requests that generate nothing and whose prompt is computed.
  void FinishPrompts();
  // That has come since the step began.
  std::optional<absl::Status> CancellationOf(uint64_t id) const;
  void Finish(Sequence* sequence, FinishReason reason,
              const absl::Status& status);
  void RecordStep(absl::Duration start);
  void RecordPages();
  void RecordTimes();
  void RecordOverflow();
  absl::Status CheckPrompt(const SequenceRequest& request) const;
  bool IsQueueFull() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Makes running, waiting and KV use visible outside the engine's thread. Of
  // those that wait, so many at most has the scheduler not looked at yet.
  void PublishLoad(int64_t most_unscheduled);
  void PublishBalance(absl::Duration now);

  // No larger than the KV cache: one sequence alone always fits.
  const EngineOptions options_;
  const ModelConfig& config_;
  Transformer& transformer_;
  KvCache& cache_;
  const EngineMetrics metrics_;
  const Clock& clock_;

  // The engine thread's own.
  KvPages pages_;
  Scheduler scheduler_;
  StepRouting step_routing_;
  TokenBatch batch_;
  std::vector<ScheduledChunk> chunks_;
  std::vector<uint64_t> finished_prompts_;
  std::vector<Sequence*> failed_prompts_;
  StepLogits logits_;
  int64_t seen_preemptions_ = 0;
  KvPages::Counts seen_counts_;
  std::array<absl::Duration, kNumStepPhases> seen_times_ = {};
  absl::Duration last_balance_;  // when PublishBalance last ran
  bool is_window_empty_ = true;  // as PublishBalance last saw it
  std::vector<uint64_t> window_rows_;
  std::vector<HotExpert> slot_loads_;

  ExpertLoad expert_load_;

  mutable Mutex mutex_;
  CondVar wake_;
  CondVar idle_;
  std::vector<std::unique_ptr<Sequence>> inbox_ ABSL_GUARDED_BY(mutex_);
  std::optional<CapacityOptions> new_capacity_ ABSL_GUARDED_BY(mutex_);
  bool forgets_prefixes_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Cancellation> cancellations_ ABSL_GUARDED_BY(mutex_);
  // Taken from the inbox, but not yet looked at by the scheduler.
  int64_t unscheduled_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  int64_t unfinished_ ABSL_GUARDED_BY(mutex_) = 0;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  Load load_ ABSL_GUARDED_BY(mutex_);

  std::thread thread_;  // last: it uses everything above
};

}  // namespace expertmesh::router
