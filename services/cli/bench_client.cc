#include "services/cli/bench_client.h"

#include <time.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/clock.h"

namespace expertmesh {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);
// gRPC's timers are whole milliseconds, rounded up. The rest of a wait for an
// arrival is spent polling.
constexpr absl::Duration kTimerError = absl::Milliseconds(1);

gpr_timespec After(absl::Duration wait) {
  return gpr_time_add(
      gpr_now(GPR_CLOCK_MONOTONIC),
      gpr_time_from_nanos(absl::ToInt64Nanoseconds(wait), GPR_TIMESPAN));
}

absl::Duration ThreadCpuTime() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return absl::DurationFromTimespec(time);
}

// One request. It has one operation under way at any time, whose tag it is.
class Stream {
 public:
  Stream(Client& client, const v1::GenerateRequest& request,
         absl::Duration begun, grpc::CompletionQueue* queue) {
    record_.begun = begun;
    record_.asked_tokens = request.max_tokens();
    record_.tokens.reserve(request.max_tokens());
    client.Prepare(context_);
    reader_ =
        client.generation().AsyncGenerate(&context_, request, queue, this);
  }

  // Its operation has completed at `now`; true when that was the last one.
  bool Advance(bool ok, absl::Duration now) {
    if (state_ == State::kFinishing) {
      record_.ended = now;
      record_.status = Verdict();
      return true;
    }
    if (ok) {
      if (state_ == State::kReading) Take(now);
      state_ = State::kReading;
      reader_->Read(&response_, this);
    } else {
      state_ = State::kFinishing;
      reader_->Finish(&status_, this);
    }
    return false;
  }

  void Cancel() { context_.TryCancel(); }

  RequestRecord& record() { return record_; }

 private:
  enum class State { kStarting, kReading, kFinishing };

  void Take(absl::Duration now) {
    record_.tokens.insert(record_.tokens.end(), response_.token_ids_size(),
                          now);
    if (response_.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
      record_.last = response_;
    }
  }

  absl::Status Verdict() const {
    if (!status_.ok()) {
      return absl::Status(static_cast<absl::StatusCode>(status_.error_code()),
                          status_.error_message());
    }
    const uint32_t said = record_.last.usage().generated_tokens();
    if (!record_.last.has_usage() || said != record_.tokens.size()) {
      return absl::InternalError(
          absl::StrCat("the stream ended well with ", record_.tokens.size(),
                       " tokens, of which its last message knows ", said));
    }
    return absl::OkStatus();
  }

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateResponse>> reader_;
  v1::GenerateResponse response_;
  grpc::Status status_;
  State state_ = State::kStarting;
  RequestRecord record_;
};

// The loop of one level.
class LevelRun {
 public:
  LevelRun(Client& client, const LoadLevel& level, uint64_t seed,
           const BenchClient::Callbacks& callbacks)
      : client_(client),
        open_loop_(level.request_rate.has_value()),
        schedule_(level, seed),
        callbacks_(callbacks) {}

  LoadResult Run() {
    const absl::Duration cpu_before = ThreadCpuTime();
    while (!streams_.empty() || (!stopped_ && schedule_.Next())) {
      SendWhatIsDue();
      Tick();
      TakeEvent();
    }
    result_.cpu_share = absl::FDivDuration(ThreadCpuTime() - cpu_before, Now());
    for (const RequestRecord& record : result_.records) {
      result_.elapsed = std::max(result_.elapsed, record.ended);
    }
    return std::move(result_);
  }

 private:
  absl::Duration Now() const { return clock_->Now() - start_; }

  void SendWhatIsDue() {
    while (!stopped_) {
      const std::optional<absl::Duration> planned = schedule_.Next();
      const absl::Duration now = Now();
      if (!planned || *planned > now) return;
      if (open_loop_) result_.delays.push_back(now - *planned);
      auto stream =
          std::make_unique<Stream>(client_, callbacks_.make_request(sent_++),
                                   open_loop_ ? *planned : now, &queue_);
      Stream* const key = stream.get();
      streams_.emplace(key, std::move(stream));
      schedule_.Sent();
    }
  }

  void Tick() {
    const absl::Duration now = Now();
    if (now < next_tick_) return;
    result_.delays.push_back(now - next_tick_);
    next_tick_ = now + kTick;
    const bool go_on = callbacks_.go_on(
        {now, streams_.size(), result_.records.size(), failed_});
    if (go_on || stopped_) return;
    stopped_ = true;
    result_.elapsed = now;
    for (const auto& [key, stream] : streams_) stream->Cancel();
  }

  void TakeEvent() {
    absl::Duration until = next_tick_;
    if (const auto planned = schedule_.Next(); planned && !stopped_) {
      until = std::min(until, *planned - kTimerError);
    }
    void* tag;
    bool ok;
    if (queue_.AsyncNext(&tag, &ok, After(until - Now())) !=
        grpc::CompletionQueue::GOT_EVENT) {
      return;
    }
    Stream* const stream = static_cast<Stream*>(tag);
    if (stream->Advance(ok, Now())) End(stream);
  }

  void End(Stream* stream) {
    RequestRecord& record = stream->record();
    schedule_.Ended(record.ended, record.status.ok());
    if (stopped_ && absl::IsCancelled(record.status)) {
      ++result_.unfinished;
    } else {
      if (!record.status.ok()) ++failed_;
      record.last.clear_token_ids();
      record.last.clear_text();
      result_.records.push_back(std::move(record));
    }
    streams_.erase(stream);
  }

  Client& client_;
  const bool open_loop_;
  LoadSchedule schedule_;
  const BenchClient::Callbacks& callbacks_;
  const Clock* const clock_ = Clock::Real();
  const absl::Duration start_ = clock_->Now();
  grpc::CompletionQueue queue_;
  std::unordered_map<Stream*, std::unique_ptr<Stream>> streams_;
  absl::Duration next_tick_;
  bool stopped_ = false;
  uint64_t sent_ = 0;
  uint64_t failed_ = 0;
  LoadResult result_;
};

}  // namespace

LoadResult BenchClient::Run(const LoadLevel& level, uint64_t seed,
                            const Callbacks& callbacks) {
  return LevelRun(client_, level, seed, callbacks).Run();
}

}  // namespace expertmesh
