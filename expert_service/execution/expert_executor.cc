#include "expert_service/execution/expert_executor.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/wire/row_sum.h"

namespace expertmesh::expert {
namespace {

void Observe(prometheus::Histogram* histogram, double value) {
  if (histogram != nullptr) histogram->Observe(value);
}

}  // namespace

ExpertExecutor::ExpertExecutor(const Options& options, const Metrics& metrics,
                               const Parts& parts)
    : options_(options),
      metrics_(metrics),
      parts_(parts),
      // Of the widest type: a single element is smaller than its scale.
      x_(static_cast<size_t>(options.max_rows) *
         std::max(RowBytes(DType::kF32, options.hidden_size),
                  RowBytes(DType::kInt8, options.hidden_size))),
      y_(x_.size()),
      thread_([this] { Loop(); }) {}

ExpertExecutor::~ExpertExecutor() {
  parts_.queue->Close();
  thread_.join();
}

void ExpertExecutor::Loop() {
  while (parts_.queue->TakeMerged(options_.max_rows, &merged_)) {
    RunMerged();
  }
}

void ExpertExecutor::RunMerged() {
  const absl::Duration started = options_.clock->Now();
  for (ExpertWork* work : merged_.expired) {
    work->Finish(absl::DeadlineExceededError("its time passed in the queue"),
                 {}, {started - work->arrival(), {}});
  }
  if (merged_.works.empty()) return;
  weights_ = parts_.weights->Get();
  PrepareReplies();
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kInt8}) {
    RunType(dtype);
  }
  weights_.reset();  // unloaded ones can go
  FinishAll(started);
}

absl::Status ExpertExecutor::CheckHosted(const ExpertWork& work) const {
  for (const uint32_t expert : work.expert_ids) {
    if (weights_->Find(work.layer, expert) == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat(
          "expert ", expert, " of layer ", work.layer, " is not loaded here"));
    }
  }
  return absl::OkStatus();
}

void ExpertExecutor::PrepareReplies() {
  outcomes_.clear();
  for (const ExpertWork* work : merged_.works) {
    Outcome outcome{CheckHosted(*work), {}};
    const auto hidden = static_cast<size_t>(options_.hidden_size);
    if (outcome.status.ok() && work->num_lone_rows > 0) {
      outcome.output.rows = parts_.replies->Acquire(
          work->num_lone_rows * RowBytes(work->dtype, hidden));
    }
    if (outcome.status.ok() && work->num_sums > 0) {
      const size_t bytes = work->num_sums * hidden * sizeof(float);
      outcome.output.sums = parts_.replies->Acquire(bytes);
      std::memset(outcome.output.sums.data(), 0, bytes);
    }
    outcomes_.push_back(std::move(outcome));
  }
}

void ExpertExecutor::RunType(DType dtype) {
  of_type_.clear();
  Outcome* last = nullptr;
  int num_works = 0;
  int64_t num_rows = 0;
  bool any_sums = false;
  for (size_t i = 0; i < merged_.works.size(); ++i) {
    ExpertWork* work = merged_.works[i];
    const bool runs =
        work->dtype == dtype && work->num_rows > 0 && outcomes_[i].status.ok();
    of_type_.push_back(runs ? work : nullptr);
    if (!runs) continue;
    last = &outcomes_[i];
    ++num_works;
    num_rows += work->num_rows;
    any_sums |= work->num_sums > 0;
  }
  if (num_works == 0) return;
  Observe(metrics_.batch_rows, static_cast<double>(num_rows));
  // Its experts ascend, so the order of a batch alone is the kernel's order.
  const bool straight =
      num_works == 1 && num_rows <= options_.max_rows && !any_sums;

  groups_.Reset(of_type_);
  while (groups_.NextChunk(options_.max_rows, &chunk_)) {
    std::byte* y = straight ? last->output.rows.data() : y_.data();
    const absl::Status status = RunChunk(dtype, y);
    if (!status.ok()) {
      for (const RowRange& range : chunk_.ranges) {
        outcomes_[range.work].status = status;
      }
      continue;
    }
    if (!straight) Scatter(dtype, y);
    CountRows();
  }
}

absl::Status ExpertExecutor::RunChunk(DType dtype, std::byte* y) {
  const auto row_bytes =
      static_cast<int64_t>(RowBytes(dtype, options_.hidden_size));
  std::byte* x = x_.data();
  for (const RowRange& range : chunk_.ranges) {
    merged_.works[range.work]->CopyRows(range.first, range.last, x);
    x += range.num_rows() * row_bytes;
  }
  chunk_experts_.clear();
  for (const uint32_t expert : chunk_.experts) {
    chunk_experts_.push_back(weights_->Find(merged_.layer, expert));
  }
  return parts_.ffn->Run({chunk_experts_, chunk_.offsets, dtype, x_.data(), y});
}

void ExpertExecutor::Scatter(DType dtype, const std::byte* y) {
  const auto row_bytes =
      static_cast<int64_t>(RowBytes(dtype, options_.hidden_size));
  summed_.clear();
  for (const RowRange& range : chunk_.ranges) {
    const int64_t bytes = range.num_rows() * row_bytes;
    if (merged_.works[range.work]->num_sums > 0) {
      ScatterRange(range, row_bytes, y);
    } else {
      std::memcpy(
          outcomes_[range.work].output.rows.data() + range.first * row_bytes, y,
          static_cast<size_t>(bytes));
    }
    y += bytes;
  }
  if (summed_.empty()) return;
  AddRows(summed_, dtype, options_.hidden_size, *parts_.pool);
}

void ExpertExecutor::ScatterRange(const RowRange& range, int64_t row_bytes,
                                  const std::byte* y) {
  const ExpertWork& work = *merged_.works[range.work];
  Outcome& outcome = outcomes_[range.work];
  auto* const sums = reinterpret_cast<float*>(outcome.output.sums.data());
  for (int64_t row = range.first; row < range.last; ++row, y += row_bytes) {
    if (work.row_sum[row] == kNoSum) {
      // Chunks come in the order of a batch's rows.
      std::memcpy(outcome.output.rows.data() + outcome.num_rows++ * row_bytes,
                  y, static_cast<size_t>(row_bytes));
    } else {
      summed_.push_back({y, work.row_weight[row],
                         sums + work.row_sum[row] * options_.hidden_size});
    }
  }
}

void ExpertExecutor::CountRows() {
  for (const RowRange& range : chunk_.ranges) {
    parts_.load->Add(merged_.layer, range.expert,
                     static_cast<uint64_t>(range.num_rows()));
  }
  parts_.load->AddRuns(chunk_.experts.size());
  if (metrics_.rows != nullptr) {
    metrics_.rows->Increment(static_cast<double>(chunk_.num_rows()));
  }
}

void ExpertExecutor::FinishAll(absl::Duration started) {
  const absl::Duration computed = options_.clock->Now() - started;
  parts_.load->AddBusy(computed);
  Observe(metrics_.forward_seconds, absl::ToDoubleSeconds(computed));
  for (size_t i = 0; i < merged_.works.size(); ++i) {
    ExpertWork* work = merged_.works[i];
    Outcome& outcome = outcomes_[i];
    const absl::Duration queued = started - work->arrival();
    Observe(metrics_.queue_seconds, absl::ToDoubleSeconds(queued));
    if (!outcome.status.ok()) outcome.output = {};
    work->Finish(outcome.status, std::move(outcome.output), {queued, computed});
  }
}

}  // namespace expertmesh::expert
