#include "router_service/dispatch/endpoint_loads.h"

#include <algorithm>
#include <cmath>

#include "router_service/dispatch/dispatch_times.h"

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

// Times differ a little by how rows are grouped, and where a wave was sent
// first. Those that differ from the usual one by less than the first factor are
// taken as it, and from the second one on for what they are.
constexpr double kUsual = 1.25;
constexpr double kOwn = 1.5;
// An endpoint that was not asked for so long may have become faster.
constexpr absl::Duration kFresh = absl::Seconds(1);
// One that was not asked for so long says nothing of the others; it may have
// left the mesh.
constexpr absl::Duration kForgotten = absl::Minutes(1);
// Speeds change slowly, and comparing them takes logarithms.
constexpr absl::Duration kCompareEvery = absl::Milliseconds(5);
// A wave must become shorter by this share to move rows for it.
constexpr double kLeastRelief = 0.01;

double Slowness(absl::Duration own, absl::Duration usual) {
  if (own <= absl::ZeroDuration() || usual <= absl::ZeroDuration()) return 1;
  const double ratio = absl::FDivDuration(own, usual);
  const double own_share = (std::abs(std::log(ratio)) - std::log(kUsual)) /
                           (std::log(kOwn) - std::log(kUsual));
  return std::pow(ratio, std::clamp(own_share, 0.0, 1.0));
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
  if (now - answer.taken - load.measured_at > kFresh) load.latency.Forget();
  load.latency.Observe(
      {answer.rows, answer.rows_ahead, answer.taken, answer.computed});
  load.measured_at = now;
  if (answer.credit_rows > 0) load.credit_rows = answer.credit_rows;
  load.is_on_probation = false;
  load.backoff = absl::ZeroDuration();
  // It was asked as the last resort, and works.
  if (now - answer.taken > load.closed_at) load.closed_until = now;
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
  load.closed_at = now;
  load.closed_until = now + load.backoff;
  load.is_on_probation = true;
}

void EndpointLoads::BeginChoice(absl::Duration now) {
  now_ = now;
  for (Load& load : loads_) {
    load.set_aside_rows = 0;
    load.is_unrelievable = false;
  }
  if (compared_at_ == absl::ZeroDuration() ||
      now - compared_at_ >= kCompareEvery) {
    compared_at_ = now;
    CompareSpeeds();
  }
}

absl::Duration EndpointLoads::Usual(absl::Duration (LatencyModel::*part)()
                                        const) {
  speeds_.clear();
  for (const Load& load : loads_) {
    if (IsKnown(load)) {
      speeds_.push_back((load.latency.*part)());
    }
  }
  if (speeds_.empty()) return (LatencyModel().*part)();
  const auto median = speeds_.begin() + speeds_.size() / 2;
  std::nth_element(speeds_.begin(), median, speeds_.end());
  return *median;
}

void EndpointLoads::CompareSpeeds() {
  usual_fixed_ = Usual(&LatencyModel::fixed);
  const absl::Duration usual_per_row = Usual(&LatencyModel::per_row);
  for (Load& load : loads_) {
    load.per_row = usual_per_row;
    if (!IsKnown(load)) continue;
    const double computes = Slowness(load.latency.per_row(), usual_per_row);
    const double answers = Slowness(load.latency.fixed(), usual_fixed_);
    // Mostly they have one cause, so they are not multiplied.
    const bool computing_says_more =
        std::abs(std::log(computes)) > std::abs(std::log(answers));
    load.per_row *= computing_says_more ? computes : answers;
  }
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
  const int64_t rows_there = load.inflight_rows + load.set_aside_rows + rows;
  const absl::Duration predicted =
      usual_fixed_ +
      load.per_row * static_cast<double>(rows_there) / load.weight;
  if (load.set_aside_rows > 0 || load.inflight_batches > 0) return predicted;
  // One that was never measured is measured at once.
  if (load.measured_at == absl::ZeroDuration()) return absl::ZeroDuration();
  // What was slow when last seen is believed so for a second, then less and
  // less, until it gets some rows again: else it would never be measured anew.
  if (!IsStale(load)) return predicted;
  const double idle = absl::ToDoubleSeconds(now_ - load.measured_at - kFresh);
  return predicted * std::exp2(-std::min(idle, 60.0));
}

bool EndpointLoads::IsKnown(const Load& load) const {
  return load.measured_at != absl::ZeroDuration() &&
         now_ - load.measured_at < kForgotten;
}

bool EndpointLoads::IsStale(const Load& load) const {
  return load.measured_at == absl::ZeroDuration() ||
         now_ - load.measured_at > kFresh;
}

int EndpointLoads::Last() const {
  int last = kNobody;
  absl::Duration latest = absl::ZeroDuration();
  for (size_t endpoint = 0; endpoint < loads_.size(); ++endpoint) {
    const Load& load = loads_[endpoint];
    if (load.set_aside_rows == 0 || load.is_unrelievable || IsStale(load)) {
      continue;
    }
    const absl::Duration back = BackAfter(load, 0);
    if (back <= latest) continue;
    latest = back;
    last = static_cast<int>(endpoint);
  }
  return last;
}

EndpointLoads::Relief EndpointLoads::FindRelief(int from,
                                                absl::Span<const int> replicas,
                                                absl::Span<const int> avoid,
                                                int64_t rows) const {
  const absl::Duration relieved = BackAfter(loads_[from], -rows);
  const absl::Duration limit = BackAfter(loads_[from], 0) * (1 - kLeastRelief);
  Relief best;
  for (const int endpoint : replicas) {
    if (static_cast<size_t>(endpoint) >= loads_.size()) continue;
    const Load& load = loads_[endpoint];
    if (endpoint == from || !IsUsable(load) || IsIn(avoid, endpoint) ||
        !HasRoom(load, rows)) {
      continue;
    }
    const absl::Duration back = std::max(relieved, BackAfter(load, rows));
    if (back < std::min(limit, best.back)) best = {endpoint, back};
  }
  return best;
}

void EndpointLoads::MoveSetAside(int from, int to, int64_t rows) {
  at(from).set_aside_rows -= rows;
  at(to).set_aside_rows += rows;
}

bool EndpointLoads::AnyUsable(absl::Span<const int> replicas,
                              absl::Span<const int> avoid) {
  return std::any_of(replicas.begin(), replicas.end(), [&](int endpoint) {
    return IsUsable(at(endpoint)) && !IsIn(avoid, endpoint);
  });
}

uint16_t EndpointLoads::CountUsable(absl::Span<const int> replicas) {
  return static_cast<uint16_t>(
      std::count_if(replicas.begin(), replicas.end(), [&](int endpoint) {
        const Load& load = at(endpoint);
        return load.overdue == 0 && load.closed_until <= now_ + kMoment;
      }));
}

absl::Duration EndpointLoads::NextReopening(absl::Duration now) const {
  absl::Duration next = absl::InfiniteDuration();
  for (const Load& load : loads_) {
    if (load.closed_until > now) next = std::min(next, load.closed_until);
  }
  return next;
}

}  // namespace expertmesh::router
