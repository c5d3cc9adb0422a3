#include "expert_service/execution/running_batch.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/dtype.h"
#include "services/wire/row_sum.h"

namespace expertmesh::expert {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kInt8};

}  // namespace

void RunningBatch::Begin(std::shared_ptr<const ExpertWeights> weights,
                         absl::Duration now) {
  weights_ = std::move(weights);
  begun_ = now;
  outcomes_.clear();
  for (const ExpertWork* work : merged_.works) {
    outcomes_.push_back(Prepare(*work));
  }
  num_types_ = 0;
  groups_.Reset({});
  all_called_ = false;
}

absl::Status RunningBatch::CheckHosted(const ExpertWork& work) const {
  for (const uint32_t expert : work.expert_ids) {
    if (weights_->Find(work.layer, expert) == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat(
          "expert ", expert, " of layer ", work.layer, " is not loaded here"));
    }
  }
  return absl::OkStatus();
}

RunningBatch::Outcome RunningBatch::Prepare(const ExpertWork& work) {
  Outcome outcome{CheckHosted(work), {}};
  if (!outcome.status.ok()) return outcome;
  if (work.num_lone_rows > 0) {
    outcome.output.rows = replies_.Acquire(
        static_cast<size_t>(work.num_lone_rows * RowBytesOf(work.dtype)));
  }
  if (work.num_sums > 0) {
    const size_t bytes =
        static_cast<size_t>(work.num_sums * RowBytesOf(DType::kF32));
    outcome.output.sums = replies_.Acquire(bytes);
    std::memset(outcome.output.sums.data(), 0, bytes);
  }
  return outcome;
}

bool RunningBatch::NextCall(KernelCall* call) {
  while (!groups_.NextChunk(options_.max_rows, &call->chunk)) {
    if (num_types_ == std::size(kTypes)) {
      all_called_ = true;
      return false;
    }
    TakeType(kTypes[num_types_++]);
  }
  call->batch = this;
  call->dtype = dtype_;
  call->out = straight_ != nullptr ? straight_ : call->y.get();
  Gather(call);
  call->is_reduced = options_.kernel_adds && rows_to_add_up_ > 0 &&
                     call->chunk.num_rows() == rows_to_add_up_;
  if (call->is_reduced) {
    call->reduction.Build(of_type_, call->chunk.ranges);
    call->added = call->reduction.view();
  }
  ++open_calls_;
  return true;
}

void RunningBatch::TakeType(DType dtype) {
  dtype_ = dtype;
  straight_ = nullptr;
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
  groups_.Reset(of_type_);
  rows_to_add_up_ = any_sums ? num_rows : 0;
  if (num_works == 0) return;
  if (options_.type_rows != nullptr) {
    options_.type_rows->Observe(static_cast<double>(num_rows));
  }
  // Its experts ascend, so the order of a work alone is the kernel's order.
  if (options_.writes_replies && num_works == 1 &&
      num_rows <= options_.max_rows && !any_sums) {
    straight_ = last->output.rows.data();
  }
}

void RunningBatch::Gather(KernelCall* call) const {
  std::byte* x = call->x.get();
  for (const RowRange& range : call->chunk.ranges) {
    merged_.works[range.work]->CopyRows(range.first, range.last, x);
    x += range.num_rows() * RowBytesOf(call->dtype);
  }
  call->experts.clear();
  for (const uint32_t expert : call->chunk.experts) {
    call->experts.push_back(weights_->Find(merged_.layer, expert));
  }
}

void RunningBatch::Store(const KernelCall& call) {
  --open_calls_;
  if (call.is_reduced) return StoreReduced(call);
  if (call.out != call.y.get()) return;
  const std::byte* y = call.out;
  const int64_t row_bytes = RowBytesOf(call.dtype);
  summed_.clear();
  for (const RowRange& range : call.chunk.ranges) {
    const int64_t bytes = range.num_rows() * row_bytes;
    if (merged_.works[range.work]->num_sums > 0) {
      StoreSums(range, y);
    } else {
      std::memcpy(
          outcomes_[range.work].output.rows.data() + range.first * row_bytes, y,
          static_cast<size_t>(bytes));
    }
    y += bytes;
  }
  if (summed_.empty()) return;
  AddRows(summed_, call.dtype, options_.hidden_size, pool_);
}

void RunningBatch::StoreReduced(const KernelCall& call) {
  const size_t row_bytes = static_cast<size_t>(RowBytesOf(call.dtype));
  const size_t sum_bytes = static_cast<size_t>(RowBytesOf(DType::kF32));
  const std::byte* const sums =
      call.out + RowReduction::SumsAt(call.added.lone_rows.size() * row_bytes);
  const auto copy = [](const std::byte* from, const PayloadRef& to) {
    if (to) std::memcpy(to.data(), from, to.size());
  };
  for (const CallReduction::Place& place : call.reduction.places()) {
    const WorkOutput& output = outcomes_[place.work].output;
    copy(call.out + place.first_lone * row_bytes, output.rows);
    copy(sums + place.first_sum * sum_bytes, output.sums);
  }
}

void RunningBatch::StoreSums(const RowRange& range, const std::byte* y) {
  const ExpertWork& work = *merged_.works[range.work];
  const int64_t row_bytes = RowBytesOf(work.dtype);
  Outcome& outcome = outcomes_[range.work];
  auto* const sums = reinterpret_cast<float*>(outcome.output.sums.data());
  for (int64_t row = range.first; row < range.last; ++row, y += row_bytes) {
    if (work.row_sum[row] == kNoSum) {
      // Calls come in the order of a work's rows.
      std::memcpy(outcome.output.rows.data() + outcome.num_rows++ * row_bytes,
                  y, static_cast<size_t>(row_bytes));
    } else {
      summed_.push_back({y, work.row_weight[row],
                         sums + work.row_sum[row] * options_.hidden_size});
    }
  }
}

void RunningBatch::Fail(const KernelCall& call, const absl::Status& status) {
  --open_calls_;
  for (const RowRange& range : call.chunk.ranges) {
    outcomes_[range.work].status = status;
  }
}

void RunningBatch::Answer(absl::Duration now) {
  weights_.reset();  // unloaded ones can go
  for (size_t i = 0; i < merged_.works.size(); ++i) {
    ExpertWork* work = merged_.works[i];
    Outcome& outcome = outcomes_[i];
    if (!outcome.status.ok()) outcome.output = {};
    work->Finish(outcome.status, std::move(outcome.output),
                 {begun_ - work->arrival(), now - begun_});
  }
}

}  // namespace expertmesh::expert
