#include "router_service/engine/engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

EngineOptions WithinCache(EngineOptions options, const KvCache& cache) {
  options.max_context_tokens =
      std::min(options.max_context_tokens, cache.num_pages() * kPageTokens);
  return options;
}

}  // namespace

Engine::Engine(const EngineOptions& options, const ModelConfig& config,
               Transformer* transformer, KvCache* cache, WorkerPool* pool,
               const EngineMetrics& metrics, const Clock* clock)
    : options_(WithinCache(options, *cache)),
      config_(config),
      transformer_(*transformer),
      cache_(*cache),
      metrics_(metrics),
      clock_(*clock),
      pages_(cache->num_pages(), options.prefix_cache),
      scheduler_(options.scheduler, &pages_),
      step_routing_(config.num_layers, config.num_experts,
                    [this](uint64_t id) { return !CancellationOf(id); }),
      logits_(config.vocab_size, transformer, pool),
      expert_load_(config.num_layers, config.num_experts,
                   options.counts_expert_rows) {
  metrics_.requests_waiting_limit->Set(static_cast<double>(options_.max_queue));
  thread_ = std::thread([this] { Run(); });
}

Engine::~Engine() { Drain(absl::ZeroDuration()); }

absl::Status Engine::CheckPrompt(const SequenceRequest& request) const {
  const int64_t prompt_size = static_cast<int64_t>(request.prompt.size());
  if (prompt_size == 0) {
    return absl::InvalidArgumentError(
        "the prompt is empty; send at least one "
        "token");
  }
  // A prompt that generates needs room for one token more.
  const int64_t reserved = request.max_tokens > 0 ? 1 : 0;
  if (prompt_size + reserved > options_.max_context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", prompt_size, " tokens, but at most ",
        options_.max_context_tokens - reserved, " fit; shorten it"));
  }
  for (int64_t i = 0; i < prompt_size; ++i) {
    if (request.prompt[i] >= 0 && request.prompt[i] < config_.vocab_size) {
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "token ", i + 1, " of the prompt is outside the vocabulary of ",
        config_.vocab_size));
  }
  return absl::OkStatus();
}

bool Engine::IsQueueFull() const {
  // Places among the running ones are filled at the next step, but not by those
  // that a step has already left waiting without one, nor by any behind them.
  const int64_t unseen = static_cast<int64_t>(inbox_.size()) + unscheduled_;
  const int64_t passed_over =
      std::max<int64_t>(0, load_.waiting - unscheduled_ - load_.deferred);
  const int64_t taken_places = load_.running + load_.deferred;
  const int64_t free_places =
      passed_over > 0 ? 0
                      : std::max<int64_t>(
                            0, options_.scheduler.max_sequences - taken_places);
  return passed_over + std::max<int64_t>(0, unseen - free_places) >=
         options_.max_queue;
}

absl::StatusOr<uint64_t> Engine::Submit(SequenceRequest request,
                                        std::shared_ptr<TokenSink> sink) {
  RETURN_IF_ERROR(CheckPrompt(request));
  const int64_t prompt_size = static_cast<int64_t>(request.prompt.size());
  request.max_tokens =
      std::min(request.max_tokens, options_.max_context_tokens - prompt_size);
  auto sequence = std::make_unique<Sequence>();
  sequence->tokens.reserve(prompt_size + request.max_tokens);
  sequence->tokens = request.prompt;
  sequence->pages.reserve(PagesFor(prompt_size + request.max_tokens));
  sequence->request = std::move(request);
  sequence->may_mix = options_.mix_numerics && !sequence->request.exact;
  sequence->sink = std::move(sink);
  sequence->arrival = clock_.Now();
  sequence->turn =
      sequence->arrival - sequence->request.priority * options_.priority_step;

  MutexLock lock(&mutex_);
  if (draining_) {
    return absl::UnavailableError("the router is shutting down; try another");
  }
  if (IsQueueFull()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full (", options_.max_queue,
                     " requests waiting); try again later"));
  }
  sequence->id = next_id_++;
  const uint64_t id = sequence->id;
  ++unfinished_;
  inbox_.push_back(std::move(sequence));
  metrics_.requests_waiting->Set(
      static_cast<double>(load_.waiting + static_cast<int64_t>(inbox_.size())));
  wake_.NotifyOne();
  return id;
}

void Engine::Cancel(uint64_t id, absl::Status status) {
  MutexLock lock(&mutex_);
  if (stop_) return;
  cancellations_.push_back({id, std::move(status)});
  wake_.NotifyOne();
}

void Engine::Drain(absl::Duration timeout) {
  {
    MutexLock lock(&mutex_);
    draining_ = true;
    idle_.WaitFor(lock, timeout, [this] { return unfinished_ == 0; });
    stop_ = true;
    wake_.NotifyOne();
  }
  if (thread_.joinable()) thread_.join();
}

Engine::Load Engine::load() const {
  MutexLock lock(&mutex_);
  Load load = load_;
  load.waiting += static_cast<int64_t>(inbox_.size());
  return load;
}

void Engine::Run() {
  while (TakeInbox()) {
    if (scheduler_.has_work()) Step();
  }
  while (scheduler_.has_work()) {
    const std::unique_ptr<Sequence> sequence =
        scheduler_.Remove(scheduler_.any_id());
    Finish(sequence.get(), FinishReason::kError,
           absl::UnavailableError("the router is shutting down; try another"));
  }
}

bool Engine::TakeInbox() {
  std::vector<std::unique_ptr<Sequence>> arrived;
  std::vector<Cancellation> cancelled;
  bool stop;
  {
    MutexLock lock(&mutex_);
    const auto has_work = [this] {
      return stop_ || !inbox_.empty() || !cancellations_.empty() ||
             scheduler_.has_work();
    };
    // An idle engine stays awake until its load window has emptied, so that the
    // gauges over it fall.
    if (is_window_empty_) {
      wake_.Wait(lock, has_work);
    } else {
      wake_.WaitFor(lock, absl::Seconds(1), has_work);
    }
    arrived.swap(inbox_);
    cancelled.swap(cancellations_);
    if (new_capacity_) transformer_.set_capacity(*new_capacity_);
    new_capacity_.reset();
    if (forgets_prefixes_) scheduler_.ForgetPrefixes();
    forgets_prefixes_ = false;
    load_.waiting =
        scheduler_.num_waiting() + static_cast<int64_t>(arrived.size());
    unscheduled_ += static_cast<int64_t>(arrived.size());
    stop = stop_;
  }
  for (std::unique_ptr<Sequence>& sequence : arrived) {
    scheduler_.Add(std::move(sequence));
  }
  for (const Cancellation& cancellation : cancelled) {
    if (const auto sequence = scheduler_.Remove(cancellation.id)) {
      Finish(sequence.get(), FinishReason::kCancelled, cancellation.status);
    }
  }
  if (!cancelled.empty()) PublishLoad(scheduler_.num_waiting());
  if (!is_window_empty_ && !scheduler_.has_work()) {
    PublishBalance(clock_.Now());
  }
  return !stop;
}

void Engine::Step() {
  const absl::Duration start = clock_.Now();
  transformer_.times().Begin();
  scheduler_.Schedule(&batch_, &chunks_);
  PublishLoad(/*most_unscheduled=*/0);
  for (const ScheduledChunk& chunk : chunks_) {
    Sequence& sequence = *chunk.sequence;
    ++sequence.num_steps;
    if (sequence.request.trace) Trace(chunk);
    if (sequence.first_step != absl::ZeroDuration()) continue;
    sequence.first_step = start;
    metrics_.queue_duration_seconds->Observe(
        absl::ToDoubleSeconds(start - sequence.arrival));
  }
  step_routing_.Begin(chunks_, batch_.num_tokens());
  transformer_.times().End(StepPhase::kSchedule);
  transformer_.Forward(batch_, &cache_, &step_routing_);
  RecordStep(start);
  Advance();
  logits_.Collect(chunks_);
  transformer_.times().End(StepPhase::kSchedule);
  logits_.Compute([this](const StepLogits::Row& row,
                         StepLogits::Result& result) { Deliver(row, result); });
  FailPrompts();
  FinishPrompts();
  scheduler_.OnStep(clock_.Now() - start);
  PublishLoad(/*most_unscheduled=*/0);
  transformer_.times().End(StepPhase::kSchedule);
  RecordTimes();
}

void Engine::Trace(const ScheduledChunk& chunk) {
  const RequestTrace& trace = *chunk.sequence->request.trace;
  if (!trace.is_sampled()) return;
  batch_.traced.push_back(
      {chunk.first_token, chunk.first_token + chunk.num_tokens,
       chunk.sequence->num_generated() == 0 ? trace.prefill_traceparent
                                            : trace.decode_traceparent});
}

void Engine::RecordTimes() {
  const auto& total = transformer_.times().total();
  for (size_t phase = 0; phase < kNumStepPhases; ++phase) {
    metrics_.step_phase_seconds[phase]->Increment(
        absl::ToDoubleSeconds(total[phase] - seen_times_[phase]));
  }
  seen_times_ = total;
}

void Engine::Advance() {
  const std::vector<absl::Status>& status = transformer_.token_status();
  finished_prompts_.clear();
  for (ScheduledChunk& chunk : chunks_) {
    for (int64_t i = 0; i < chunk.num_tokens; ++i) {
      const absl::Status& token_status = status[chunk.first_token + i];
      if (token_status.ok()) continue;
      const auto sequence = scheduler_.Remove(chunk.sequence->id);
      if (const auto cancelled = CancellationOf(sequence->id)) {
        Finish(sequence.get(), FinishReason::kCancelled, *cancelled);
      } else {
        Finish(sequence.get(), FinishReason::kError, token_status);
      }
      chunk.sequence = nullptr;
      break;
    }
    if (chunk.sequence == nullptr) continue;
    scheduler_.Advance(chunk, step_routing_.NumExact(chunk));
    if (chunk.sequence->num_pending() == 0 &&
        chunk.sequence->request.max_tokens == 0) {
      finished_prompts_.push_back(chunk.sequence->id);
    }
  }
  std::erase_if(chunks_, [](const ScheduledChunk& chunk) {
    return chunk.sequence == nullptr;
  });
}

void Engine::Deliver(const StepLogits::Row& row, StepLogits::Result& result) {
  // Later rows still point to a sequence that failed, so it ends after them.
  if (std::find(failed_prompts_.begin(), failed_prompts_.end(), row.sequence) !=
      failed_prompts_.end()) {
    return;
  }
  if (!row.scored) {
    DeliverToken(row.sequence, result);
  } else if (std::isfinite(result.logprob.logprob)) {
    row.sequence->prompt_logprobs.push_back(std::move(result.logprob));
  } else {
    failed_prompts_.push_back(row.sequence);
  }
}

void Engine::FailPrompts() {
  for (Sequence* sequence : failed_prompts_) {
    const auto removed = scheduler_.Remove(sequence->id);
    Finish(removed.get(), FinishReason::kError,
           absl::InternalError(absl::StrCat(
               "the model gave no finite logit for token ",
               removed->prompt_logprobs.size() + 2, " of the prompt")));
  }
  failed_prompts_.clear();
}

void Engine::DeliverToken(Sequence* sequence, StepLogits::Result& result) {
  const absl::Duration now = clock_.Now();
  if (result.token_id < 0) {
    const auto removed = scheduler_.Remove(sequence->id);
    Finish(removed.get(), FinishReason::kError,
           absl::InternalError("the model gave no finite logit"));
    return;
  }
  sequence->tokens.push_back(result.token_id);
  metrics_.generated_tokens->Increment();
  expert_load_.AddTokens(1, now);
  if (sequence->num_generated() == 1) {
    sequence->first_token = now;
    metrics_.prompt_tokens->Increment(
        static_cast<double>(sequence->prompt_size()));
    metrics_.time_to_first_token_seconds->Observe(
        absl::ToDoubleSeconds(now - sequence->arrival));
  } else {
    metrics_.inter_token_latency_seconds->Observe(
        absl::ToDoubleSeconds(now - sequence->last_token));
  }
  sequence->last_token = now;
  const SequenceRequest& request = sequence->request;
  const bool go_on = sequence->sink->OnToken(
      *sequence, result.token_id, request.logprobs ? &result.logprob : nullptr);
  const bool is_stop_id =
      std::find(request.stop_ids.begin(), request.stop_ids.end(),
                result.token_id) != request.stop_ids.end();
  FinishReason reason;
  if (is_stop_id) {
    reason = FinishReason::kStop;
  } else if (!go_on) {
    reason = FinishReason::kStopped;
  } else if (sequence->num_generated() >= request.max_tokens) {
    reason = FinishReason::kLength;
  } else {
    return;
  }
  const auto removed = scheduler_.Remove(sequence->id);
  Finish(removed.get(), reason, absl::OkStatus());
}

void Engine::FinishPrompts() {
  for (const uint64_t id : finished_prompts_) {
    const auto removed = scheduler_.Remove(id);
    if (removed == nullptr) continue;  // failed in this step
    metrics_.prompt_tokens->Increment(
        static_cast<double>(removed->prompt_size()));
    Finish(removed.get(), FinishReason::kLength, absl::OkStatus());
  }
}

std::optional<absl::Status> Engine::CancellationOf(uint64_t id) const {
  MutexLock lock(&mutex_);
  for (const Cancellation& cancellation : cancellations_) {
    if (cancellation.id == id) return cancellation.status;
  }
  return std::nullopt;
}

void Engine::Finish(Sequence* sequence, FinishReason reason,
                    const absl::Status& status) {
  if (status.ok()) {
    metrics_.request_duration_seconds->Observe(
        absl::ToDoubleSeconds(clock_.Now() - sequence->arrival));
  }
  sequence->sink->OnFinish(*sequence, reason, status);
  MutexLock lock(&mutex_);
  if (--unfinished_ == 0) idle_.NotifyAll();
}

void Engine::RecordStep(absl::Duration start) {
  const absl::Duration now = clock_.Now();
  metrics_.step_duration_seconds->Observe(absl::ToDoubleSeconds(now - start));
  const RoutingAccount& routing = step_routing_.total();
  for (int i = 0; i < kNumRowOutcomes; ++i) {
    if (routing.rows[i] > 0)
      metrics_.routed_rows[i]->Increment(routing.rows[i]);
  }
  metrics_.gate_mass_chosen->Increment(routing.original_mass);
  metrics_.gate_mass_kept->Increment(routing.kept_mass);
  RecordOverflow();
  metrics_.preemptions->Increment(
      static_cast<double>(scheduler_.num_preemptions() - seen_preemptions_));
  seen_preemptions_ = scheduler_.num_preemptions();
  RecordPages();
  expert_load_.Add(step_routing_.rows(), now);
  is_window_empty_ = false;
  if (now - last_balance_ >= absl::Seconds(1)) {
    last_balance_ = now;
    PublishBalance(now);
  }
  MutexLock lock(&mutex_);
  for (int i = 0; i < kNumRowOutcomes; ++i) load_.rows[i] += routing.rows[i];
}

void Engine::RecordPages() {
  const KvPages::Counts& counts = pages_.counts();
  metrics_.prefix_cache_lookup_tokens->Increment(
      static_cast<double>(counts.lookup_tokens - seen_counts_.lookup_tokens));
  metrics_.prefix_cache_hit_tokens->Increment(
      static_cast<double>(counts.hit_tokens - seen_counts_.hit_tokens));
  metrics_.prefix_cache_evicted_pages->Increment(
      static_cast<double>(counts.evicted_pages - seen_counts_.evicted_pages));
  seen_counts_ = counts;
}

void Engine::RecordOverflow() {
  if (step_routing_.overflow_rows() + step_routing_.uncovered_rows() == 0) {
    return;
  }
  metrics_.overflow_rows->Increment(
      static_cast<double>(step_routing_.overflow_rows()));
  metrics_.uncovered_rows->Increment(
      static_cast<double>(step_routing_.uncovered_rows()));
  if (metrics_.layer_overflow_rows.empty()) return;
  const std::vector<OverflowCounts>& overflow = step_routing_.overflow();
  for (size_t layer = 0; layer < overflow.size(); ++layer) {
    for (int reason = 0; reason < kNumOverflowReasons; ++reason) {
      for (int outcome = 0; outcome < kNumRowOutcomes; ++outcome) {
        const uint32_t rows = overflow[layer][reason][outcome];
        if (rows == 0) continue;
        metrics_.layer_overflow_rows[layer][reason][outcome]->Increment(rows);
      }
    }
  }
}

void Engine::SetCapacity(const CapacityOptions& capacity) {
  MutexLock lock(&mutex_);
  new_capacity_ = capacity;
}

void Engine::ForgetPrefixes() {
  MutexLock lock(&mutex_);
  forgets_prefixes_ = true;
}

void Engine::PublishLoad(int64_t most_unscheduled) {
  const double usage =
      1.0 - static_cast<double>(pages_.num_available()) /
                static_cast<double>(std::max<int64_t>(1, pages_.num_pages()));
  metrics_.kv_cache_usage_ratio->Set(usage);
  metrics_.requests_running->Set(static_cast<double>(scheduler_.num_running()));
  metrics_.requests_waiting->Set(static_cast<double>(scheduler_.num_waiting()));
  metrics_.prefix_cache_pages->Set(static_cast<double>(pages_.num_kept()));
  metrics_.prefill_budget_tokens->Set(
      static_cast<double>(scheduler_.prefill_budget()));
  MutexLock lock(&mutex_);
  load_.running = scheduler_.num_running();
  load_.waiting = scheduler_.num_waiting();
  load_.deferred = scheduler_.num_deferred();
  unscheduled_ = std::min(unscheduled_, most_unscheduled);
  load_.kv_cache_usage_ratio = usage;
}

void Engine::PublishBalance(absl::Duration now) {
  expert_load_.Window(now, &window_rows_);
  const int64_t num_experts = config_.num_experts;
  slot_loads_.clear();
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    if (!config_.layers[layer].is_moe) continue;
    const uint64_t* rows = &window_rows_[layer * num_experts];
    if (prometheus::Gauge* gauge = metrics_.layer_balancedness_ratio[layer]) {
      gauge->Set(Balancedness(rows, num_experts));
    }
    double sum = 0;
    for (int64_t e = 0; e < num_experts; ++e) sum += rows[e];
    if (sum == 0) continue;
    for (int64_t e = 0; e < num_experts; ++e) {
      slot_loads_.push_back({layer, e, rows[e] * num_experts / sum});
    }
  }
  is_window_empty_ = slot_loads_.empty();
  if (metrics_.hot_experts != nullptr) metrics_.hot_experts->Show(&slot_loads_);
}

}  // namespace expertmesh::router
