#include "expert_service/execution/expert_executor.h"

#include <algorithm>
#include <utility>

namespace expertmesh::expert {
namespace {

void Observe(prometheus::Histogram* histogram, double value) {
  if (histogram != nullptr) histogram->Observe(value);
}

}  // namespace

ExpertExecutor::ExpertExecutor(const Options& options, const Metrics& metrics,
                               const Parts& parts)
    : options_(options), metrics_(metrics), parts_(parts) {
  const size_t bytes =
      RowReduction::MaxBytes(options.max_rows, options.hidden_size);
  for (int i = 0; i < parts.ffn->max_started(); ++i) {
    calls_.push_back(std::make_unique<KernelCall>());
    calls_.back()->x = parts.ffn->NewRowBuffer(bytes);
    calls_.back()->y = parts.ffn->NewRowBuffer(bytes);
    batches_.push_back(std::make_unique<RunningBatch>(
        RunningBatch::Options{.hidden_size = options.hidden_size,
                              .max_rows = options.max_rows,
                              .writes_replies = parts.ffn->takes_any_memory(),
                              .kernel_adds = parts.ffn->adds_rows(),
                              .type_rows = metrics.batch_rows},
        parts.replies, parts.pool));
  }
  thread_ = std::thread([this] { Loop(); });
}

ExpertExecutor::~ExpertExecutor() {
  parts_.queue->Close();
  thread_.join();
}

void ExpertExecutor::Loop() {
  while (Take(&batches_[next_batch_]->merged())) {
    RunningBatch& batch = *batches_[next_batch_];
    AnswerExpired(batch.merged());
    if (batch.merged().works.empty()) continue;
    batch.Begin(parts_.weights->Get(), options_.clock->Now());
    StartCalls(batch);
    if (batch.is_done()) {
      Answer(batch);
    } else {
      next_batch_ = (next_batch_ + 1) % batches_.size();
    }
  }
}

bool ExpertExecutor::Take(MergedBatch* merged) {
  while (num_started_ > 0) {
    if (parts_.queue->TryTakeMerged(options_.max_rows, merged)) return true;
    FinishOldestCall();
  }
  return parts_.queue->TakeMerged(options_.max_rows, merged);
}

void ExpertExecutor::AnswerExpired(const MergedBatch& merged) {
  const absl::Duration now = options_.clock->Now();
  for (ExpertWork* work : merged.expired) {
    work->Finish(absl::DeadlineExceededError("its time passed in the queue"),
                 {}, {now - work->arrival(), {}});
  }
}

void ExpertExecutor::StartCalls(RunningBatch& batch) {
  while (true) {
    KernelCall& call = *calls_[(first_call_ + num_started_) % calls_.size()];
    if (!batch.NextCall(&call)) return;
    const absl::Status status = parts_.ffn->Start(call.rows());
    if (!status.ok()) {
      while (num_started_ > 0) FinishOldestCall();  // calls end in their order
      EndCall(call, status);
      continue;
    }
    if (++num_started_ == calls_.size()) FinishOldestCall();
  }
}

void ExpertExecutor::FinishOldestCall() {
  const KernelCall& call = *calls_[first_call_];
  first_call_ = (first_call_ + 1) % calls_.size();
  --num_started_;
  EndCall(call, parts_.ffn->Finish());
  if (call.batch->is_done()) Answer(*call.batch);
}

void ExpertExecutor::EndCall(const KernelCall& call,
                             const absl::Status& status) {
  if (status.ok()) {
    call.batch->Store(call);
    CountRows(call, call.batch->merged().layer);
    return;
  }
  call.batch->Fail(call, status);
  if (!std::exchange(has_failed_, true) && options_.on_fault) {
    options_.on_fault(status);
  }
}

void ExpertExecutor::CountRows(const KernelCall& call, uint32_t layer) {
  for (const RowRange& range : call.chunk.ranges) {
    parts_.load->Add(layer, range.expert,
                     static_cast<uint64_t>(range.num_rows()));
  }
  parts_.load->AddRuns(call.chunk.experts.size());
  if (metrics_.rows != nullptr) {
    metrics_.rows->Increment(static_cast<double>(call.chunk.num_rows()));
  }
}

void ExpertExecutor::Answer(RunningBatch& batch) {
  const absl::Duration now = options_.clock->Now();
  // Time in which several batches ran counts once.
  parts_.load->AddBusy(now - std::max(batch.begun(), busy_until_));
  busy_until_ = now;
  Observe(metrics_.forward_seconds, absl::ToDoubleSeconds(now - batch.begun()));
  for (const ExpertWork* work : batch.merged().works) {
    Observe(metrics_.queue_seconds,
            absl::ToDoubleSeconds(batch.begun() - work->arrival()));
  }
  batch.Answer(now);
  parts_.queue->Done(batch.merged().num_rows);
}

}  // namespace expertmesh::expert
