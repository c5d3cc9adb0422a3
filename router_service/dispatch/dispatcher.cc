#include "router_service/dispatch/dispatcher.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/core/clock.h"
#include "services/linalg/vector_ops.h"

namespace expertmesh::router {

// One message on its way, with the memory its spans point to.
class DispatchTicket::Message final : public BatchCompletion {
 public:
  explicit Message(DispatchTicket* ticket) : ticket_(ticket) {}

  void Done(const absl::Status& status) override {
    status_ = status;
    // Notified under the lock: the waiter may be gone as soon as it is open.
    MutexLock lock(&ticket_->mutex_);
    if (--ticket_->unanswered_ == 0) ticket_->all_answered_.NotifyOne();
  }

  void Clear() {
    expert_ids.clear();
    group_offsets.assign(1, 0);
    row_token.clear();
    plan_rows.clear();
    status_ = absl::OkStatus();
  }
  const absl::Status& status() const { return status_; }

  int endpoint = 0;
  ExpertBatch batch;
  std::vector<uint32_t> expert_ids;
  std::vector<uint32_t> group_offsets;
  std::vector<uint32_t> row_token;
  std::vector<uint32_t> plan_rows;  // [num_rows] row of the plan

 private:
  DispatchTicket* const ticket_;
  absl::Status status_;
};

DispatchTicket::DispatchTicket(const DispatcherOptions& options)
    : rows_(options.max_tokens * options.top_k * options.hidden_size *
            DTypeBytes(options.wire_dtype)),
      row_position_(options.max_tokens * options.top_k) {}

DispatchTicket::~DispatchTicket() = default;

Dispatcher::Dispatcher(const DispatcherOptions& options,
                       ExpertTransport* transport)
    : options_(options),
      transport_(transport),
      local_index_(options.max_tokens),
      is_needed_(options.max_tokens, 0) {}

void Dispatcher::BeginStep() {
  for (absl::Status& status : lost_) status = absl::OkStatus();
}

void Dispatcher::Begin(int64_t layer, const float* hidden_states,
                       const DispatchPlan& plan,
                       std::shared_ptr<const Placement> placement,
                       DispatchTicket* ticket) {
  ticket->layer_ = layer;
  ticket->hidden_states_ = hidden_states;
  ticket->plan_ = &plan;
  ticket->placement_ = std::move(placement);
  ticket->next_position_ = 0;
  ticket->failures_.clear();
  if (plan.num_waves() > 0) SendWave(0, ticket);
}

void Dispatcher::Finish(DispatchTicket* ticket) {
  const int64_t num_waves = ticket->plan_->num_waves();
  for (int64_t wave = 0; wave < num_waves; ++wave) {
    if (wave > 0) SendWave(wave, ticket);
    Await(ticket);
  }
}

void Dispatcher::SendWave(int64_t wave, DispatchTicket* ticket) {
  const DispatchPlan& plan = *ticket->plan_;
  for (std::vector<uint32_t>& groups : endpoint_groups_) groups.clear();
  for (uint32_t g = plan.wave_groups[wave]; g < plan.wave_groups[wave + 1];
       ++g) {
    const RowGroup& group = plan.groups[g];
    const int endpoint =
        ticket->placement_->endpoint(ticket->layer_, group.expert_id);
    absl::Status status;
    if (endpoint == Placement::kNone) {
      status = absl::UnavailableError(
          absl::StrCat("no expert service hosts expert ", group.expert_id,
                       " of layer ", ticket->layer_, " now; try again"));
    } else if (static_cast<size_t>(endpoint) < lost_.size()) {
      status = lost_[endpoint];
    }
    if (!status.ok()) {
      for (uint32_t row = group.first_row; row < group.last_row; ++row) {
        ticket->row_position_[row] = ticket->next_position_++;
        ticket->failures_.push_back({plan.row_token[row], status});
      }
      continue;
    }
    if (endpoint_groups_.size() <= static_cast<size_t>(endpoint)) {
      endpoint_groups_.resize(endpoint + 1);
      lost_.resize(endpoint + 1);
    }
    endpoint_groups_[endpoint].push_back(g);
  }
  ticket->num_messages_ = 0;
  for (size_t e = 0; e < endpoint_groups_.size(); ++e) {
    if (!endpoint_groups_[e].empty()) {
      SendToEndpoint(static_cast<int>(e), endpoint_groups_[e], ticket);
    }
  }
}

void Dispatcher::SendToEndpoint(int endpoint,
                                const std::vector<uint32_t>& groups,
                                DispatchTicket* ticket) {
  const DispatchPlan& plan = *ticket->plan_;
  uint32_t end_token = 0;
  for (const uint32_t g : groups) {
    for (uint32_t row = plan.groups[g].first_row; row < plan.groups[g].last_row;
         ++row) {
      is_needed_[plan.row_token[row]] = 1;
      end_token = std::max(end_token, plan.row_token[row] + 1);
    }
  }
  tokens_.clear();
  for (uint32_t token = 0; token < end_token; ++token) {
    if (!is_needed_[token]) continue;
    is_needed_[token] = 0;
    local_index_[token] = static_cast<uint32_t>(tokens_.size());
    tokens_.push_back(token);
  }

  const size_t token_bytes =
      options_.hidden_size * DTypeBytes(options_.wire_dtype);
  const size_t tokens_per_part =
      std::max<size_t>(1, options_.max_message_bytes / token_bytes);
  for (size_t first = 0; first < tokens_.size(); first += tokens_per_part) {
    const size_t last = std::min(tokens_.size(), first + tokens_per_part);
    DispatchTicket::Message* message =
        BuildMessage(groups, tokens_[first], tokens_[last - 1] + 1, ticket);
    ExpertBatch& batch = message->batch;
    batch.layer = static_cast<uint32_t>(ticket->layer_);
    batch.dtype = options_.wire_dtype;
    batch.hidden_size = static_cast<uint32_t>(options_.hidden_size);
    batch.num_tokens = static_cast<uint32_t>(last - first);
    batch.hidden_states = Gather(*ticket, first, last);
    batch.expert_ids = message->expert_ids;
    batch.group_offsets = message->group_offsets;
    batch.row_token = message->row_token;
    batch.timeout = options_.timeout;
    message->endpoint = endpoint;
    Send(message, ticket);
  }
}

void Dispatcher::Send(DispatchTicket::Message* message,
                      DispatchTicket* ticket) {
  {
    MutexLock lock(&ticket->mutex_);
    ++ticket->unanswered_;
  }
  transport_->Send(message->endpoint, message->batch, message);
}

// The rows of `groups` whose token is in [first_token, last_token). Rows of a
// group ascend by token, so each group gives one run.
DispatchTicket::Message* Dispatcher::BuildMessage(
    const std::vector<uint32_t>& groups, uint32_t first_token,
    uint32_t last_token, DispatchTicket* ticket) {
  const DispatchPlan& plan = *ticket->plan_;
  if (ticket->num_messages_ == ticket->messages_.size()) {
    ticket->messages_.push_back(
        std::make_unique<DispatchTicket::Message>(ticket));
  }
  DispatchTicket::Message* message =
      ticket->messages_[ticket->num_messages_++].get();
  message->Clear();
  const size_t row_bytes =
      options_.hidden_size * DTypeBytes(options_.wire_dtype);
  message->batch.rows_out =
      ticket->rows_.data() + ticket->next_position_ * row_bytes;
  const uint32_t first_index = local_index_[first_token];
  for (const uint32_t g : groups) {
    const RowGroup& group = plan.groups[g];
    const auto begin = plan.row_token.begin();
    const auto from = std::lower_bound(begin + group.first_row,
                                       begin + group.last_row, first_token);
    const auto to = std::lower_bound(from, begin + group.last_row, last_token);
    if (from == to) continue;
    for (auto it = from; it != to; ++it) {
      const uint32_t row = static_cast<uint32_t>(it - begin);
      message->row_token.push_back(local_index_[*it] - first_index);
      message->plan_rows.push_back(row);
      ticket->row_position_[row] = ticket->next_position_++;
    }
    message->expert_ids.push_back(static_cast<uint32_t>(group.expert_id));
    message->group_offsets.push_back(
        static_cast<uint32_t>(message->row_token.size()));
  }
  return message;
}

PayloadRef Dispatcher::Gather(const DispatchTicket& ticket, size_t first,
                              size_t last) {
  const int64_t hidden = options_.hidden_size;
  const size_t row_bytes = hidden * DTypeBytes(options_.wire_dtype);
  PayloadRef payload = payloads_.Acquire((last - first) * row_bytes);
  std::byte* to = payload.data();
  for (size_t i = first; i < last; ++i, to += row_bytes) {
    const float* from = ticket.hidden_states_ + tokens_[i] * hidden;
    if (options_.wire_dtype == DType::kF32) {
      std::memcpy(to, from, row_bytes);
    } else {
      ConvertToBF16(from, hidden, reinterpret_cast<BF16*>(to));
    }
  }
  return payload;
}

void Dispatcher::Await(DispatchTicket* ticket) {
  constexpr absl::Duration kLongestPause = absl::Milliseconds(50);
  const absl::Duration give_up = Clock::Real()->Now() + options_.timeout;
  absl::Duration pause = absl::Milliseconds(1);
  AwaitAnswers(ticket);
  while (Clock::Real()->Now() < give_up && ResendRefused(ticket)) {
    // Others fill that queue, too: give it time to empty.
    absl::SleepFor(pause);
    pause = std::min(2 * pause, kLongestPause);
    AwaitAnswers(ticket);
  }
  for (size_t i = 0; i < ticket->num_messages_; ++i) {
    DispatchTicket::Message& message = *ticket->messages_[i];
    message.batch.hidden_states = PayloadRef();
    if (!message.status().ok()) FailRows(message.status(), message, ticket);
  }
}

void Dispatcher::AwaitAnswers(DispatchTicket* ticket) {
  MutexLock lock(&ticket->mutex_);
  ticket->all_answered_.Wait(lock, [&] { return ticket->unanswered_ == 0; });
}

bool Dispatcher::ResendRefused(DispatchTicket* ticket) {
  bool any = false;
  for (size_t i = 0; i < ticket->num_messages_; ++i) {
    DispatchTicket::Message* message = ticket->messages_[i].get();
    if (!absl::IsResourceExhausted(message->status())) continue;
    any = true;
    Send(message, ticket);
  }
  return any;
}

void Dispatcher::FailRows(const absl::Status& status,
                          DispatchTicket::Message& message,
                          DispatchTicket* ticket) {
  const absl::Status fault = absl::IsInternal(status)
                                 ? status
                                 : absl::UnavailableError(status.message());
  if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) {
    lost_[message.endpoint] = fault;
  }
  for (const uint32_t row : message.plan_rows) {
    ticket->failures_.push_back({ticket->plan_->row_token[row], fault});
  }
}

}  // namespace expertmesh::router
