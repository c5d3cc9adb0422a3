#include "router_service/dispatch/endpoint_loads.h"

#include <algorithm>
#include <cmath>

namespace expertmesh::router {
namespace {

// A full queue empties within milliseconds; a connection is opened again after
// tens of them; a fault may last.
absl::Duration FirstBackoff(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return absl::Milliseconds(1);
    case absl::StatusCode::kUnavailable:
      return absl::Milliseconds(20);
    default:
      return absl::Milliseconds(500);
  }
}
absl::Duration LongestBackoff(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return absl::Milliseconds(50);
    case absl::StatusCode::kUnavailable:
      return absl::Seconds(1);
    default:
      return absl::Seconds(30);
  }
}

bool IsIn(absl::Span<const int> endpoints, int endpoint) {
  return std::find(endpoints.begin(), endpoints.end(), endpoint) !=
         endpoints.end();
}

}  // namespace

void EndpointLoads::OnSend(int endpoint, int64_t rows) {
  Load& load = at(endpoint);
  load.inflight_rows += rows;
  ++load.inflight_batches;
}

void EndpointLoads::OnAnswer(int endpoint, const Answer& answer,
                             absl::Duration now) {
  Load& load = at(endpoint);
  load.inflight_rows -= answer.rows;
  --load.inflight_batches;
  load.latency.Observe(answer.rows_ahead, answer.taken);
  load.measured_at = now;
  if (answer.credit_rows > 0) load.credit_rows = answer.credit_rows;
  load.is_on_probation = false;
  load.backoff = absl::ZeroDuration();
}

void EndpointLoads::OnError(int endpoint, const Answer& answer,
                            const absl::Status& status, absl::Duration now) {
  Load& load = at(endpoint);
  load.inflight_rows -= answer.rows;
  --load.inflight_batches;
  if (answer.credit_rows > 0) load.credit_rows = answer.credit_rows;
  // It was told what it does not host; that is no fault.
  if (absl::IsFailedPrecondition(status)) return;
  load.closed_to_all_until = now + FirstBackoff(status);
  // Batches that were in flight together fail together: one error.
  if (load.closed_until > now) return;
  load.backoff = std::clamp(2 * load.backoff, FirstBackoff(status),
                            LongestBackoff(status));
  load.closed_until = now + load.backoff;
  load.is_on_probation = true;
}

void EndpointLoads::BeginChoice(absl::Duration now) {
  now_ = now;
  for (Load& load : loads_) load.set_aside_rows = 0;
}

bool EndpointLoads::HasRoom(const Load& load, int64_t rows) {
  // One batch may always be in flight, whatever its size.
  if (load.inflight_batches == 0 && load.set_aside_rows == 0) return true;
  if (load.is_on_probation && load.inflight_batches > 0) return false;
  return load.inflight_rows + load.set_aside_rows + rows <= load.credit_rows;
}

int EndpointLoads::Choose(absl::Span<const int> replicas,
                          absl::Span<const int> avoid, int64_t rows,
                          bool may_force) {
  int best = kNobody;
  bool any_usable = false;
  absl::Duration soonest = absl::InfiniteDuration();
  for (const int endpoint : replicas) {
    const Load& load = at(endpoint);
    if (!IsUsable(load) || IsIn(avoid, endpoint)) continue;
    any_usable = true;
    if (!HasRoom(load, rows)) continue;
    const absl::Duration back = BackAfter(load, rows);
    if (back < soonest) {
      soonest = back;
      best = endpoint;
    }
  }
  if (!any_usable && may_force) best = LastResort(replicas, avoid);
  if (best != kNobody) at(best).set_aside_rows += rows;
  return best;
}

int EndpointLoads::LastResort(absl::Span<const int> replicas,
                              absl::Span<const int> avoid) {
  for (const int endpoint : replicas) {
    const Load& load = at(endpoint);
    if (load.overdue == 0 && load.inflight_batches == 0 &&
        load.closed_to_all_until <= now_ && !IsIn(avoid, endpoint)) {
      return endpoint;
    }
  }
  return kNobody;
}

absl::Duration EndpointLoads::BackAfter(const Load& load, int64_t rows) const {
  const absl::Duration predicted =
      load.latency.Predict(load.inflight_rows + load.set_aside_rows + rows) /
      load.weight;
  if (load.set_aside_rows > 0 || load.inflight_batches > 0) return predicted;
  // One that was never measured is measured at once.
  if (load.measured_at == absl::ZeroDuration()) return absl::ZeroDuration();
  // What was slow when last seen is believed so for a second, then less and
  // less, until it gets some rows again: else it would never be measured anew.
  const double idle =
      absl::ToDoubleSeconds(now_ - load.measured_at - absl::Seconds(1));
  return idle > 0 ? predicted * std::exp2(-std::min(idle, 60.0)) : predicted;
}

bool EndpointLoads::AnyUsable(absl::Span<const int> replicas,
                              absl::Span<const int> avoid) {
  return std::any_of(replicas.begin(), replicas.end(), [&](int endpoint) {
    return IsUsable(at(endpoint)) && !IsIn(avoid, endpoint);
  });
}

uint16_t EndpointLoads::CountUsable(absl::Span<const int> replicas) {
  return static_cast<uint16_t>(
      std::count_if(replicas.begin(), replicas.end(),
                    [&](int endpoint) { return IsUsable(at(endpoint)); }));
}

absl::Duration EndpointLoads::NextReopening(absl::Duration now) const {
  absl::Duration next = absl::InfiniteDuration();
  for (const Load& load : loads_) {
    if (load.closed_until > now) next = std::min(next, load.closed_until);
  }
  return next;
}

}  // namespace expertmesh::router
