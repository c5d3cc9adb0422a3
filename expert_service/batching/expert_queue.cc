#include "expert_service/batching/expert_queue.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertmesh::expert {

// A list through the works themselves, so that queueing allocates nothing.
class ExpertQueue::Stream {
 private:
  friend class ExpertQueue;

  void Append(ExpertWork* work) {
    work->next_ = nullptr;
    *last_ = work;
    last_ = &work->next_;
  }

  // Takes out the first work that `wanted` accepts; null when there is none.
  template <typename Predicate>
  ExpertWork* TakeFirst(Predicate wanted) {
    ExpertWork** link = &first_;
    while (*link != nullptr && !wanted(**link)) link = &(*link)->next_;
    ExpertWork* work = *link;
    if (work == nullptr) return nullptr;
    *link = work->next_;
    if (last_ == &work->next_) last_ = link;
    return work;
  }

  CreditLedger::Account* account_ = nullptr;
  ExpertWork* first_ = nullptr;
  ExpertWork** last_ = &first_;  // the link a new work goes into
};

ExpertQueue::ExpertQueue(const Options& options, const Metrics& metrics)
    : options_(options),
      metrics_(metrics),
      credits_({.budget_rows = options.capacity_rows}) {
  if (metrics_.queue_limit_rows != nullptr) {
    metrics_.queue_limit_rows->Set(static_cast<double>(options_.capacity_rows));
  }
}

ExpertQueue::~ExpertQueue() = default;

ExpertQueue::Stream* ExpertQueue::OpenStream() {
  MutexLock lock(&mutex_);
  // The last in turn is the one before turn_.
  const auto place =
      streams_.insert(streams_.begin() + static_cast<ptrdiff_t>(turn_),
                      std::make_unique<Stream>());
  if (streams_.size() > 1) ++turn_;
  (*place)->account_ = credits_.Open(options_.clock->Now());
  return place->get();
}

void ExpertQueue::CloseStream(Stream* stream) {
  MutexLock lock(&mutex_);
  const auto place =
      std::find_if(streams_.begin(), streams_.end(),
                   [&](const auto& other) { return other.get() == stream; });
  const auto index = static_cast<size_t>(place - streams_.begin());
  credits_.Close(stream->account_);
  streams_.erase(place);
  if (index < turn_) --turn_;
  if (turn_ >= streams_.size()) turn_ = 0;
}

absl::Status ExpertQueue::Add(Stream* stream, ExpertWork* work) {
  {
    MutexLock lock(&mutex_);
    if (closed_) {
      return absl::UnavailableError("the expert service is shutting down");
    }
    const absl::Duration now = options_.clock->Now();
    credits_.Ask(stream->account_, work->num_rows, now);
    if (stream->first_ != nullptr &&
        waiting_rows_ + work->num_rows > options_.capacity_rows &&
        credits_.UnansweredRows(stream->account_) + work->num_rows >
            credits_.Grant(stream->account_, now)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the queue holds ", waiting_rows_, " of ",
                       options_.capacity_rows, " rows and has no room for ",
                       work->num_rows, "; send fewer rows at a time"));
    }
    work->arrival_ = now;
    work->taken_ = true;
    credits_.Take(stream->account_, work->num_rows);
    stream->Append(work);
    ++total_works_;
    ++waiting_works_;
    AddWaitingRows(work->num_rows);
  }
  changed_.NotifyOne();
  return absl::OkStatus();
}

int64_t ExpertQueue::Settle(Stream* stream, ExpertWork* work) {
  MutexLock lock(&mutex_);
  const absl::Duration now = options_.clock->Now();
  if (std::exchange(work->taken_, false)) {
    credits_.Answer(stream->account_, work->num_rows, now);
  }
  return credits_.Grant(stream->account_, now);
}

std::vector<ExpertWork*> ExpertQueue::Remove(Stream* stream) {
  MutexLock lock(&mutex_);
  const absl::Duration now = options_.clock->Now();
  std::vector<ExpertWork*> removed;
  const auto any = [](const ExpertWork&) { return true; };
  while (ExpertWork* work = stream->TakeFirst(any)) {
    --waiting_works_;
    AddWaitingRows(-work->num_rows);
    work->taken_ = false;
    credits_.Answer(stream->account_, work->num_rows, now);
    removed.push_back(work);
  }
  return removed;
}

bool ExpertQueue::TakeMerged(int64_t max_rows, MergedBatch* out) {
  if (options_.await_briefly && !HasWork()) {
    options_.await_briefly([this] { return HasWork(); });
  }
  MutexLock lock(&mutex_);
  changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return waiting_works_ > 0 || closed_;
  });
  Take(max_rows, out);
  return !out->works.empty() || !out->expired.empty();
}

bool ExpertQueue::TryTakeMerged(int64_t max_rows, MergedBatch* out) {
  MutexLock lock(&mutex_);
  Take(max_rows, out);
  return !out->works.empty() || !out->expired.empty();
}

void ExpertQueue::Done(int64_t num_rows) {
  MutexLock lock(&mutex_);
  running_rows_ -= num_rows;
}

void ExpertQueue::Take(int64_t max_rows, MergedBatch* out) {
  out->works.clear();
  out->expired.clear();
  out->num_rows = 0;
  if (waiting_works_ > 0) TakeExpired(out);
  if (waiting_works_ > 0) TakeLayer(max_rows, out);
  running_rows_ += out->num_rows;
}

bool ExpertQueue::HasWork() {
  MutexLock lock(&mutex_);
  return waiting_works_ > 0 || closed_;
}

void ExpertQueue::TakeExpired(MergedBatch* out) {
  const absl::Duration now = options_.clock->Now();
  const auto expired = [now](const ExpertWork& work) {
    return now - work.arrival_ >= work.timeout;
  };
  for (const auto& stream : streams_) {
    while (ExpertWork* work = stream->TakeFirst(expired)) {
      --waiting_works_;
      AddWaitingRows(-work->num_rows);
      out->expired.push_back(work);
    }
  }
}

void ExpertQueue::TakeLayer(int64_t max_rows, MergedBatch* out) {
  while (streams_[turn_]->first_ == nullptr) {
    turn_ = (turn_ + 1) % streams_.size();
  }
  out->layer = streams_[turn_]->first_->layer;
  bool any = true;
  while (any) {
    any = false;
    for (size_t i = 0; i < streams_.size(); ++i) {
      Stream& stream = *streams_[(turn_ + i) % streams_.size()];
      any |= TakeFrom(stream, max_rows, out);
    }
  }
  turn_ = (turn_ + 1) % streams_.size();
}

bool ExpertQueue::TakeFrom(Stream& stream, int64_t max_rows, MergedBatch* out) {
  // A batch that does not fit keeps its place, and those behind it wait too:
  // else small batches would overtake a large one for ever.
  bool blocked = false;
  ExpertWork* work = stream.TakeFirst([&](const ExpertWork& candidate) {
    if (blocked || candidate.layer != out->layer) return false;
    blocked =
        !out->works.empty() && out->num_rows + candidate.num_rows > max_rows;
    return !blocked;
  });
  if (work == nullptr) return false;
  --waiting_works_;
  AddWaitingRows(-work->num_rows);
  out->num_rows += work->num_rows;
  out->works.push_back(work);
  return true;
}

void ExpertQueue::AddWaitingRows(int64_t rows) {
  waiting_rows_ += rows;
  if (metrics_.queue_rows != nullptr) {
    metrics_.queue_rows->Set(static_cast<double>(waiting_rows_));
  }
}

void ExpertQueue::Close() {
  {
    MutexLock lock(&mutex_);
    closed_ = true;
  }
  changed_.NotifyAll();
}

int64_t ExpertQueue::WaitingRows() const {
  MutexLock lock(&mutex_);
  return waiting_rows_;
}

int64_t ExpertQueue::PendingRows() const {
  MutexLock lock(&mutex_);
  return waiting_rows_ + running_rows_;
}

int64_t ExpertQueue::NewcomerCredits() const {
  MutexLock lock(&mutex_);
  return credits_.NewcomerGrant(options_.clock->Now());
}

int64_t ExpertQueue::TotalWorks() const {
  MutexLock lock(&mutex_);
  return total_works_;
}

}  // namespace expertmesh::expert
