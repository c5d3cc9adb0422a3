#include "router_service/api/response_fields.h"

#include "router_service/api/request_translator.h"
#include "services/core/log.h"

namespace expertmesh::router {
namespace {

constexpr LogRate kLogRate = {.per_second = 100, .burst = 100};

// Not a fault: a client that went away is its own business.
bool IsClientsLeaving(const absl::Status& status) {
  return absl::IsCancelled(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace

v1::RoutingAccount ToProto(const RoutingAccount& account) {
  v1::RoutingAccount out;
  out.set_primary(account[RowOutcome::kPrimary]);
  out.set_replica(account[RowOutcome::kReplica]);
  out.set_waited(account[RowOutcome::kWaited]);
  out.set_rerouted(account[RowOutcome::kRerouted]);
  out.set_dropped(account[RowOutcome::kDropped]);
  out.set_gate_mass_kept(account.GateMassKept());
  out.set_crossed(account.crossed);
  return out;
}

v1::TokenLogprob ToProto(const TokenLogprob& logprob) {
  v1::TokenLogprob out;
  out.set_token_id(static_cast<uint32_t>(logprob.token_id));
  out.set_logprob(logprob.logprob);
  for (const auto& [id, value] : logprob.top) {
    v1::TopLogprob* top = out.add_top();
    top->set_token_id(static_cast<uint32_t>(id));
    top->set_logprob(value);
  }
  return out;
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kStopped:
      return v1::FINISH_REASON_STOP_STRING;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
    case FinishReason::kError:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::Timings TimingsOf(const Sequence& sequence, absl::Duration now) {
  v1::Timings out;
  out.set_queue_seconds(
      absl::ToDoubleSeconds(sequence.first_step - sequence.arrival));
  out.set_time_to_first_token_seconds(
      absl::ToDoubleSeconds(sequence.first_token - sequence.arrival));
  out.set_total_seconds(absl::ToDoubleSeconds(now - sequence.arrival));
  return out;
}

void LogRefused(Method method, absl::string_view request_id,
                const absl::Status& status, absl::string_view trace_id) {
  static LogRateLimit limit(kLogRate);
  // One that is too long is what the request is refused for.
  const bool has_id = request_id.size() <= kMaxRequestIdBytes;
  Log(limit, IsClientsLeaving(status) ? LogLevel::kInfo : LogLevel::kWarning,
      "request refused",
      {{"request_id", has_id ? request_id : ""},
       {"method", kMethodNames[static_cast<int>(method)]},
       {"code", absl::StatusCodeToString(status.code())},
       {"error", status.message()},
       {"trace_id", trace_id}});
}

void LogFinished(Method method, const Sequence& sequence,
                 const absl::Status& status, absl::Duration now,
                 absl::string_view trace_id) {
  static LogRateLimit fault_limit(kLogRate);
  static LogRateLimit limit(kLogRate);
  const bool is_fault = !status.ok() && !IsClientsLeaving(status);
  Log(is_fault ? fault_limit : limit,
      is_fault ? LogLevel::kWarning : LogLevel::kInfo, "request finished",
      {{"request_id", sequence.request.request_id},
       {"method", kMethodNames[static_cast<int>(method)]},
       {"code", absl::StatusCodeToString(status.code())},
       {"error", status.message()},
       {"prompt_tokens", sequence.prompt_size()},
       {"cached_tokens", sequence.num_cached},
       {"generated_tokens", sequence.num_generated()},
       {"seconds", absl::ToDoubleSeconds(now - sequence.arrival)},
       {"trace_id", trace_id}});
}

}  // namespace expertmesh::router
