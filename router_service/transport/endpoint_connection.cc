#include "router_service/transport/endpoint_connection.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/clock.h"
#include "services/wire/status_codec.h"

namespace expertmesh::router {
namespace {

constexpr char kForward[] = "/expertmesh.expert.v1.ExpertService/Forward";
constexpr char kLeft[] = "it has left the mesh";

uint32_t TimeoutMs(absl::Duration timeout) {
  if (timeout == absl::InfiniteDuration()) return 0;
  const int64_t ms = absl::ToInt64Milliseconds(timeout);
  return static_cast<uint32_t>(
      std::clamp<int64_t>(ms, 1, std::numeric_limits<uint32_t>::max()));
}

// What an answer other than OK means to the sender. An endpoint refuses a
// batch's shape only if the two sides disagree on the model or the protocol.
absl::Status RefusalStatus(const DecodedResult& result) {
  absl::Status status = FromWireCode(result.code(), result.message());
  if (status.code() != absl::StatusCode::kInvalidArgument) return status;
  return absl::InternalError(
      absl::StrCat("refused the batch: ", result.message()));
}

void Count(prometheus::Counter* bytes, const grpc::ByteBuffer& message) {
  if (bytes != nullptr) bytes->Increment(static_cast<double>(message.Length()));
}

}  // namespace

EndpointConnection::EndpointConnection(Options options,
                                       grpc::CompletionQueue* queue)
    : options_(std::move(options)),
      queue_(queue),
      stub_(MakeExpertChannel(options_.address, options_.tls)),
      last_error_(absl::UnavailableError("not connected yet")) {}

absl::Status EndpointConnection::Named(const absl::Status& status) const {
  return absl::Status(status.code(),
                      absl::StrCat("expert service ", options_.address, ": ",
                                   status.message()));
}

// --- Sending. --------------------------------------------------------------

void EndpointConnection::Send(const ExpertBatch& batch,
                              BatchCompletion* completion) {
  const absl::Duration now = Clock::Real()->Now();
  // Once it is sent, its completion may free the batch.
  const absl::Duration timeout = batch.timeout;
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    status = Enqueue(batch, completion, now);
  }
  if (!status.ok()) {
    completion->Done({.status = Named(status)});
  } else if (timeout != absl::InfiniteDuration()) {
    options_.wake_by(now + timeout);
  }
}

absl::Status EndpointConnection::Enqueue(const ExpertBatch& batch,
                                         BatchCompletion* completion,
                                         absl::Duration now) {
  if (state_ != State::kOpen) {
    return absl::UnavailableError(last_error_.message());
  }
  if (batch.timeout <= absl::ZeroDuration()) {
    return absl::DeadlineExceededError("no time left to send the batch");
  }
  InFlightTable::Entry* entry = in_flight_.Add(
      {.completion = completion,
       .num_rows = static_cast<uint32_t>(batch.num_rows()),
       .answer = {.num_rows = static_cast<uint32_t>(batch.num_lone_rows()),
                  .num_sums = batch.num_sums,
                  .hidden_size = batch.hidden_size,
                  .dtype = batch.dtype},
       .sent_at = now,
       .deadline = now + batch.timeout});
  const uint64_t sequence_number = entry->batch.sequence_number;
  const absl::Status encoded =
      EncodeBatch({.sequence_number = sequence_number,
                   .layer = batch.layer,
                   .timeout_ms = TimeoutMs(batch.deadline),
                   .dtype = batch.dtype,
                   .hidden_size = batch.hidden_size,
                   .num_tokens = batch.num_tokens,
                   .expert_ids = batch.expert_ids,
                   .group_offsets = batch.group_offsets,
                   .row_token = batch.row_token,
                   .row_weight = batch.row_weight,
                   .row_sum = batch.row_sum,
                   .num_sums = batch.num_sums,
                   .traceparents = batch.traceparents},
                  batch.hidden_states, &entry->message);
  if (!encoded.ok()) {
    InFlightBatch refused;
    in_flight_.Take(sequence_number, &refused);
    return absl::InternalError(encoded.message());
  }
  CountRows();
  write_queue_.push_back(sequence_number);
  if (!is_writing_ && !is_link_full_) WriteNext();
  return absl::OkStatus();
}

void EndpointConnection::WriteNext() {
  UseLinkIfAccepted();
  while (next_write_ < write_queue_.size()) {
    InFlightTable::Entry* entry = in_flight_.Find(write_queue_[next_write_++]);
    if (entry == nullptr) continue;  // its time ran out while it waited
    Count(options_.sent_bytes, entry->message);
    if (link_reader_ != nullptr) {
      is_link_full_ = !link_->Write(entry->message);
    } else {
      is_writing_ = true;
      stream_->Write(entry->message, &written_);
    }
    entry->message.Clear();
    if (is_writing_ || is_link_full_) return;
  }
  write_queue_.clear();
  next_write_ = 0;
}

void EndpointConnection::CountRows() {
  const uint64_t rows = in_flight_.rows();
  const uint64_t before =
      inflight_rows_.exchange(rows, std::memory_order_relaxed);
  CountRowSeconds(before);
  if (options_.inflight_rows != nullptr) {
    options_.inflight_rows->Set(static_cast<double>(rows));
  }
}

// Rows leave at their deadline at the latest, so this is never long behind.
void EndpointConnection::CountRowSeconds(uint64_t rows) {
  if (options_.row_seconds == nullptr) return;
  const absl::Duration now = Clock::Real()->Now();
  options_.row_seconds->Increment(static_cast<double>(rows) *
                                  absl::ToDoubleSeconds(now - counted_at_));
  counted_at_ = now;
}

void EndpointConnection::Tell(const InFlightBatch& batch,
                              const BatchAnswer& answer) {
  if (options_.rpc_duration_seconds != nullptr) {
    options_.rpc_duration_seconds->Observe(
        absl::ToDoubleSeconds(Clock::Real()->Now() - batch.sent_at));
  }
  batch.completion->Done(answer);
}

// --- Receiving. ------------------------------------------------------------

void EndpointConnection::OnEvent(Event event, bool ok) {
  switch (event) {
    case Event::kStarted:
      return OnStarted(ok);
    case Event::kRead:
      return OnRead(ok);
    case Event::kWritten:
      return OnWritten(ok);
    case Event::kFinished:
      return OnFinished();
  }
}

void EndpointConnection::OnRead(bool ok) {
  if (!ok) {
    MutexLock lock(&mutex_);
    BeginClose();
    return;
  }
  const absl::Status taken = TakeAnswer(&received_);
  MutexLock lock(&mutex_);
  if (!taken.ok()) FailStream(taken);
  // After a failure it ends at once.
  stream_->Read(&received_.message, &read_);
}

absl::Status EndpointConnection::TakeAnswer(Incoming* incoming) {
  Count(options_.received_bytes, incoming->message);
  DecodedResult& result = incoming->result;
  const absl::Status decoded = result.Decode(incoming->message);
  incoming->message.Clear();
  if (!decoded.ok()) {
    return absl::InternalError("sent bytes that are no ExpertResult");
  }
  InFlightBatch batch;
  bool is_ours;
  {
    MutexLock lock(&mutex_);
    if (!in_flight_.WasIssued(result.sequence_number())) {
      return absl::InternalError("answered a batch that was never sent");
    }
    // Not found: the answer to a batch whose time was over.
    is_ours = in_flight_.Take(result.sequence_number(), &batch);
    if (is_ours) {
      CountRows();
      EndIfIdle();
    }
  }
  if (is_ours) Tell(batch, Answer(batch, incoming));
  result.ReleasePayload();
  return absl::OkStatus();
}

BatchAnswer EndpointConnection::Answer(const InFlightBatch& batch,
                                       Incoming* incoming) {
  const DecodedResult& result = incoming->result;
  BatchAnswer answer;
  answer.credit_rows = result.credit_rows();
  if (answer.credit_rows > 0 && options_.credit_rows != nullptr) {
    options_.credit_rows->Set(answer.credit_rows);
  }
  answer.computed = absl::Microseconds(result.compute_us());
  if (result.code() != expert::v1::CODE_OK) {
    answer.status = Named(RefusalStatus(result));
    return answer;
  }
  const absl::Status shape = result.CheckShape(batch.answer);
  if (shape.ok()) {
    incoming->row_bytes =
        RowBytes(batch.answer.dtype, batch.answer.hidden_size);
    answer.rows = incoming;
  } else {
    answer.status = Named(absl::InternalError(shape.message()));
  }
  return answer;
}

void EndpointConnection::OnWritten(bool ok) {
  bool is_last = false;
  {
    MutexLock lock(&mutex_);
    is_writing_ = false;
    // After a failed write the call is over, which the pending read will tell.
    if (ok && state_ == State::kOpen && !is_link_full_) WriteNext();
    is_last = is_finished_;
  }
  if (is_last) Close();
}

// --- Opening and closing. --------------------------------------------------

absl::Duration EndpointConnection::Sweep(absl::Duration now) {
  absl::Duration next;
  {
    MutexLock lock(&mutex_);
    next = in_flight_.TakeExpired(now, &expired_);
    if (!expired_.empty()) {
      CountRows();
      EndIfIdle();
    }
    if (state_ == State::kClosed && !shutdown_) {
      if (open_next_ <= now) {
        Open();
      } else {
        next = std::min(next, open_next_);
      }
    }
  }
  for (const InFlightBatch& batch : expired_) {
    Tell(batch, {.status = Named(absl::DeadlineExceededError(absl::StrCat(
                     "no answer within ",
                     absl::FormatDuration(batch.deadline - batch.sent_at))))});
  }
  expired_.clear();
  return next;
}

void EndpointConnection::Open() {
  state_ = State::kOpening;
  is_finished_ = false;
  own_error_ = absl::OkStatus();
  context_.emplace();
  OfferLink();
  stream_ = stub_.PrepareCall(&*context_, kForward, queue_);
  stream_->StartCall(&started_);
}

void EndpointConnection::OnStarted(bool ok) {
  {
    MutexLock lock(&mutex_);
    if (!ok || shutdown_) {
      BeginClose();
      return;
    }
    state_ = State::kOpen;
    opened_at_ = Clock::Real()->Now();
    stream_->Read(&received_.message, &read_);
  }
  options_.on_change(absl::OkStatus());
}

// Nothing is being read any more: asks how the call ended.
void EndpointConnection::BeginClose() {
  state_ = State::kClosing;
  stream_->Finish(&status_, &finished_);
}

void EndpointConnection::FailStream(const absl::Status& why) {
  own_error_ = why;
  context_->TryCancel();
}

void EndpointConnection::OnFinished() {
  bool is_last = false;
  {
    MutexLock lock(&mutex_);
    is_finished_ = true;
    is_last = !is_writing_;
  }
  if (is_last) Close();
}

// The queue holds no more events of the stream.
void EndpointConnection::Close() {
  EndLink();
  const absl::Duration now = Clock::Real()->Now();
  absl::Status reason;
  absl::Duration open_next;
  {
    MutexLock lock(&mutex_);
    if (!own_error_.ok()) {
      reason = own_error_;
    } else if (shutdown_) {
      reason = absl::UnavailableError(
          is_leaving_ ? kLeft : "this router is shutting down");
    } else if (status_.ok()) {
      reason = absl::UnavailableError("the stream was ended by the service");
    } else {
      reason = absl::UnavailableError(
          absl::StrCat("the stream failed: ", status_.error_message()));
    }
    last_error_ = reason;
    in_flight_.TakeAll(&lost_);
    CountRows();
    write_queue_.clear();
    next_write_ = 0;
    stream_.reset();
    context_.reset();
    EndIfIdle();
    // A stream that worked for a while is opened again quickly.
    if (opened_at_ > absl::ZeroDuration() &&
        now - opened_at_ > kMaxReconnectDelay) {
      delay_ = kMinReconnectDelay;
    }
    opened_at_ = absl::ZeroDuration();
    open_next = open_next_ = now + delay_;
    delay_ = NextReconnectDelay(delay_);
  }
  const absl::Status named = Named(reason);
  for (const InFlightBatch& batch : lost_) Tell(batch, {.status = named});
  lost_.clear();
  options_.on_change(reason);
  {
    MutexLock lock(&mutex_);
    state_ = State::kClosed;
    closed_.NotifyAll();
    // Within the lock, so that nothing of ours runs once this is gone.
    options_.wake_by(shutdown_ ? now : open_next);
  }
}

void EndpointConnection::Leave() {
  {
    MutexLock lock(&mutex_);
    is_leaving_ = true;
    EndIfIdle();
  }
  options_.wake_by(Clock::Real()->Now());
}

void EndpointConnection::EndIfIdle() {
  if (!is_leaving_ || shutdown_ || !in_flight_.empty()) return;
  shutdown_ = true;
  last_error_ = absl::UnavailableError(kLeft);
  if (context_.has_value()) context_->TryCancel();
}

bool EndpointConnection::IsGone() const {
  MutexLock lock(&mutex_);
  return shutdown_ && state_ == State::kClosed;
}

void EndpointConnection::Shutdown() {
  MutexLock lock(&mutex_);
  shutdown_ = true;
  if (context_.has_value()) context_->TryCancel();
  closed_.Wait(lock, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return state_ == State::kClosed;
  });
  last_error_ = absl::UnavailableError("this router is shutting down");
}

}  // namespace expertmesh::router
