#pragma once

// What the dispatcher knows of each endpoint from its own traffic, and which
// replica a group of rows should go to.

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "router_service/dispatch/latency_model.h"

namespace expertmesh::router {

// Bookkeeping by endpoint index. Not thread-safe: guarded by the dispatcher.
//
// An endpoint is left alone
//   - while a batch there is overdue: it is stuck, and it shows that it is not
//     any more by answering;
//   - for a while after an error, longer each time; then it is on probation,
//     with one batch at a time until one succeeds. Sooner, where all others
//     that could be asked are left alone as well: better tried than failed.
class EndpointLoads {
 public:
  static constexpr int kNobody = -1;

  // Another batch of `rows` was sent.
  void OnSend(int endpoint, int64_t rows);
  // It was answered, well or badly, or its time ran out.
  struct Answer {
    int64_t rows = 0;
    int64_t rows_ahead = 0;    // in flight there when it was sent, its own too
    uint32_t credit_rows = 0;  // as of BatchAnswer
    absl::Duration taken = absl::ZeroDuration();
    absl::Duration computed = absl::ZeroDuration();  // as of BatchAnswer
  };
  void OnAnswer(int endpoint, const Answer& answer, absl::Duration now);
  void OnError(int endpoint, const Answer& answer, const absl::Status& status,
               absl::Duration now);
  // A batch is unanswered for longer than it may be; until OnceOverdue.
  void OnOverdue(int endpoint) { ++at(endpoint).overdue; }
  void OnceOverdue(int endpoint) { --at(endpoint).overdue; }

  // Begins choices at time `now`: no rows are set aside yet.
  void BeginChoice(absl::Duration now);
  // Until it answers, this many rows may be in flight there.
  void SetFirstCredit(int endpoint, uint32_t rows) {
    Load& load = at(endpoint);
    if (load.credit_rows == kNoBound && rows > 0) load.credit_rows = rows;
  }
  // Of two endpoints as fast, one of twice the weight is given twice as many
  // rows.
  void SetWeight(int endpoint, double weight) { at(endpoint).weight = weight; }
  // The replica that would have these rows back soonest, counting what is in
  // flight there and set aside; they are set aside for it. kNobody when none
  // has room or all are in `avoid` or left alone, even as the last resort.
  //   may_force  where all are left alone, one that is closed after errors is
  //              tried all the same
  int Choose(absl::Span<const int> replicas, absl::Span<const int> avoid,
             int64_t rows, bool may_force = true);

  // Of the endpoints that rows are set aside for, the one that has them back
  // last; kNobody: there are none. Not counted: those that are only measured,
  // and those of which nobody can relieve them.
  int Last() const;
  void SetUnrelievable(int endpoint) { at(endpoint).is_unrelievable = true; }
  // Where rows that are set aside for `from` had better go.
  struct Relief {
    int endpoint = kNobody;
    absl::Duration back = absl::InfiniteDuration();  // of both, the later one
  };
  // The replica that makes both be back soonest and sooner than `from` is now.
  Relief FindRelief(int from, absl::Span<const int> replicas,
                    absl::Span<const int> avoid, int64_t rows) const;
  void MoveSetAside(int from, int to, int64_t rows);

  // Whether one of the replicas would be chosen if it had room.
  bool AnyUsable(absl::Span<const int> replicas, absl::Span<const int> avoid);
  // How many would, in a moment at the latest.
  uint16_t CountUsable(absl::Span<const int> replicas);

  // How long a batch that is sent now is likely to take, rows in flight and
  // its own together.
  absl::Duration Predict(int endpoint, int64_t rows) {
    return at(endpoint).latency.Predict(rows);
  }
  bool IsSettled(int endpoint) { return at(endpoint).latency.is_settled(); }
  // A batch there is overdue.
  bool IsStuck(int endpoint) { return at(endpoint).overdue > 0; }
  int64_t inflight_rows(int endpoint) { return at(endpoint).inflight_rows; }
  // When an endpoint that an error closed may be asked again, the earliest
  // after `now`; InfiniteDuration: none is closed.
  absl::Duration NextReopening(absl::Duration now) const;

 private:
  static constexpr int64_t kNoBound = std::numeric_limits<int64_t>::max();
  struct Load {
    int64_t inflight_rows = 0;
    int64_t inflight_batches = 0;
    int64_t overdue = 0;
    // Of the choice under way.
    int64_t set_aside_rows = 0;
    bool is_unrelievable = false;
    absl::Duration per_row = LatencyModel().per_row();

    int64_t credit_rows = kNoBound;
    double weight = 1;
    LatencyModel latency;
    absl::Duration measured_at = absl::ZeroDuration();
    bool is_on_probation = false;
    absl::Duration closed_at = absl::ZeroDuration();
    absl::Duration closed_until = absl::ZeroDuration();
    // From when on it may be asked as the last resort.
    absl::Duration closed_to_all_until = absl::ZeroDuration();
    absl::Duration backoff = absl::ZeroDuration();
  };

  Load& at(int endpoint) {
    if (loads_.size() <= static_cast<size_t>(endpoint)) {
      loads_.resize(endpoint + 1);
    }
    return loads_[endpoint];
  }
  bool IsUsable(const Load& load) const {
    return load.overdue == 0 && load.closed_until <= now_;
  }
  int LastResort(absl::Span<const int> replicas, absl::Span<const int> avoid);
  static bool HasRoom(const Load& load, int64_t rows);
  // The median of a part of endpoints' times.
  absl::Duration Usual(absl::Duration (LatencyModel::*part)() const);
  void CompareSpeeds();
  bool IsKnown(const Load& load) const;
  // Nobody knows how fast it is now.
  bool IsStale(const Load& load) const;
  absl::Duration BackAfter(const Load& load, int64_t rows) const;

  std::vector<Load> loads_;
  absl::Duration now_ = absl::ZeroDuration();
  absl::Duration compared_at_ = absl::ZeroDuration();
  absl::Duration usual_fixed_ = absl::ZeroDuration();  // of this choice
  std::vector<absl::Duration> speeds_;                 // scratch
};

}  // namespace expertmesh::router
