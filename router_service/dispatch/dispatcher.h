#pragma once

// Stop 5d: rows of a plan → messages to endpoints → rows back.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "router_service/dispatch/batch_attempt.h"
#include "router_service/dispatch/batch_builder.h"
#include "router_service/dispatch/combine.h"
#include "router_service/dispatch/combine_groups.h"
#include "router_service/dispatch/dispatch_metrics.h"
#include "router_service/dispatch/dispatch_plan.h"
#include "router_service/dispatch/hedge_policy.h"
#include "router_service/dispatch/placement.h"
#include "router_service/transport/expert_transport.h"
#include "services/linalg/buffer.h"

namespace expertmesh::router {

// Why rows are asked for once more.
enum class RetryReason { kBadValues, kMissing };

struct DispatcherOptions {
  DType wire_dtype = DType::kF32;
  int64_t hidden_size = 0;
  int64_t max_tokens = 0;  // of one step
  int64_t top_k = 0;
  // Experts of one combine group.
  int64_t combine_group_size = 1;
  // Larger messages go in parts by token range.
  int64_t max_message_bytes = 1 << 20;
  // A batch is overdue after so many times its predicted time, and no sooner
  // than min_deadline: then another replica is asked.
  double deadline_factor = 8;
  absl::Duration min_deadline = absl::Milliseconds(50);
  // How long rows wait in one step for somebody to serve them, where nobody
  // does or the only one that could does not answer.
  absl::Duration uncovered_timeout = absl::Seconds(10);
  // How long rows wait in one step for an endpoint of the mesh's numerics_id
  // that hosts them and cannot be asked just now, before one of another id is.
  absl::Duration cross_after = absl::Seconds(1);
  // Batches sent to a second replica because they are late, over all batches.
  double hedge_budget = 0.05;
};

// The exchange of one layer of one step. Reused from layer to layer; what it
// needs is allocated once.
class DispatchTicket {
 public:
  explicit DispatchTicket(const DispatcherOptions& options);

  // Valid after Dispatcher::Finish.
  ExpertOutputs outputs() const {
    return {wire_dtype_, rows_.data(), &groups_, &sums_};
  }

  // Forgets the token's sums and appends their rows, which are undefined until
  // they are asked for again, to *rows.
  // Requires: its rows in the plan are as they were sent.
  void ForgetSums(uint32_t token, std::vector<uint32_t>* rows);
  // Appends the token's rows with values that are not finite to *rows. Of such
  // sums it is all rows, and they are forgotten.
  void TakeBadRows(uint32_t token, std::vector<uint32_t>* rows);

  // Rows of the plan that did not come back: their outputs are undefined.
  struct Failure {
    uint32_t row;
    absl::Status status;
  };
  const std::vector<Failure>& failures() const { return failures_; }

  // Tokens with rows that went to an endpoint of another numerics_id than the
  // mesh's, whoever answered in the end; in any order, some more than once.
  const std::vector<uint32_t>& crossed_tokens() const {
    return crossed_tokens_;
  }

 private:
  friend class Dispatcher;

  // Calls visit(sum, place, first, last) for each combine group of the token:
  // its rows [first, last), which begin at `place` of the token's rows, and
  // their sum, null where they came by themselves.
  template <typename Visit>
  void ForGroups(uint32_t token, const Visit& visit);

  bool MayMix(uint32_t token) const {
    return !may_mix_.empty() && may_mix_[token] != 0;
  }

  // Rows of the plan and the endpoint that served them; later ones count.
  struct Served {
    uint32_t first_row;
    uint32_t last_row;  // one past the end
    int endpoint;
  };

  const DType wire_dtype_;
  const int64_t top_k_;
  const int64_t hidden_size_;
  BatchBuilder::Source source_ = {};
  absl::Span<const uint8_t> may_mix_;  // [num_tokens], or empty: none may
  Buffer rows_;  // [max_tokens · top_k, hidden_size] of wire_dtype_
  CombineGroups groups_;
  PartialSums sums_;
  std::vector<Failure> failures_;
  std::vector<Served> served_;
  std::vector<uint32_t> crossed_tokens_;
  RowExchange exchange_;          // of the wave under way
  std::vector<uint32_t> unsent_;  // pieces that wait for an endpoint
};

// Sends the rows of a plan to endpoints that host them, and again to others
// where that fails: one message per endpoint, layer and wave below
// max_message_bytes, unless something goes wrong.
//
//   - Of several replicas, rows go to the one that is likely to have them back
//     first, within the credit it granted (EndpointLoads), so that a wave is
//     back as soon as can be. These are the replicas of the mesh's numerics_id,
//     and where a token may mix, those of other ids too.
//   - A batch that failed is sent elsewhere at once; one that is late is sent
//     to a second replica too (a hedge), one that is overdue certainly. The
//     first answer counts; a later one is ignored.
//   - Where all rows of a token and combine group go in one message, their sum
//     comes back instead, if that is smaller and the endpoint can add.
//   - Rows that nobody can serve wait for somebody, up to uncovered_timeout a
//     step; then they fail with UNAVAILABLE. Where no token has to wait for
//     them they fail after a moment, which is for a connection that comes back.
//   - An endpoint that does not hold what it announced is not asked for it
//     again before something in the mesh changes.
//
// Which replica of the mesh's numerics_id answers changes no bit of the rows;
// rows that cross to another id, because they may or must, are counted. One
// thread.
class Dispatcher {
 public:
  // `table` and `transport` must outlive this.
  Dispatcher(const DispatcherOptions& options, PlacementTable* table,
             ExpertTransport* transport, const DispatchMetrics& metrics = {});
  // Batches still in flight are answered to nobody.
  ~Dispatcher();

  // A step begins: rows may wait for endpoints anew.
  void BeginStep() {
    uncovered_left_ = options_.uncovered_timeout;
    cross_left_ = options_.cross_after;
  }

  // How many endpoints would take rows of each expert of the layer now.
  //   replicas  [num_experts], overwritten
  //   may_mix   as Begin has it
  void CountReplicas(int64_t layer, std::vector<uint16_t>* replicas,
                     absl::Span<const uint8_t> may_mix = {});

  // Sends the first wave. `hidden_states` [num_tokens, hidden_size] f32
  // (rounded to the wire's type on the way), `plan`, `may_mix` and `traced`
  // stay valid until Finish.
  //   may_mix  [num_tokens], or empty: none; whether the token's rows may go to
  //            endpoints of any numerics_id, and not only where none of the
  //            mesh's can serve them
  //   traced   requests whose contexts go with their rows, as far as a batch
  //   has
  //            room for them
  void Begin(int64_t layer, const float* hidden_states,
             const DispatchPlan& plan, DispatchTicket* ticket,
             absl::Span<const uint8_t> may_mix = {},
             absl::Span<const TracedTokens> traced = {});

  // Whether a token has to wait for rows that nobody serves now: it may not do
  // without them, and somebody still wants it. Asked again and again while they
  // wait.
  using MustWait = absl::FunctionRef<bool(uint32_t token)>;

  // Blocks until every row of every wave is back or has failed. Faults of the
  // mesh are UNAVAILABLE (or INTERNAL) whatever the transport called them:
  // another code would blame the client.
  void Finish(DispatchTicket* ticket, MustWait must_wait);

  // After Finish: has some rows of the plan computed once more, by another
  // replica where there is one; they come back by themselves. They are failures
  // only if nobody computes them this time.
  // Whoever gave bad values is not asked for them again where there is another.
  void Retry(absl::Span<const uint32_t> rows, DispatchTicket* ticket,
             MustWait must_wait, RetryReason reason = RetryReason::kBadValues);

  const DispatcherOptions& options() const { return options_; }
  // Rows that went to an endpoint of another numerics_id, since the start.
  int64_t num_crossed_rows() const { return num_crossed_rows_; }

 private:
  void LookUpPlacement();
  // The endpoint was told to be the wrong one for the expert, with `status`.
  void OnNotHosted(const BatchAttempt& attempt, int64_t layer);
  void BeginWave(int64_t wave, DispatchTicket* ticket);
  void AddPiece(int32_t expert_id, uint32_t first_row, uint32_t last_row,
                DispatchTicket* ticket);
  void FinishWave(DispatchTicket* ticket, MustWait must_wait);
  // Until something has happened after `seen_events`, or the time has come.
  void AwaitEvent(uint64_t seen_events, absl::Duration wake);

  // Sends what waits to be sent; what nobody takes goes on waiting.
  void SendUnsent(DispatchTicket* ticket);
  void BeginChoice() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);
  // Gives each of the pieces to an endpoint, in chosen_. Unsent ones that
  // nobody has room for go to unsent_.
  void Choose(absl::Span<const uint32_t> wanted, bool is_hedge,
              DispatchTicket* ticket);
  // Who may be asked for the piece without need.
  absl::Span<const int> Candidates(const RowPiece& piece, int64_t layer) const;
  // Who is not to be asked for the piece now. Who gave values that are not
  // finite is asked again only where there is no other, however busy.
  absl::InlinedVector<int, 4> Avoided(const RowPiece& piece,
                                      int64_t layer) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);
  // Whoever would be back last gives pieces away, the best one first, for as
  // long as others are back sooner; then whoever is the next to last.
  void EvenOut(DispatchTicket* ticket)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);
  int ChooseReplica(const RowPiece& piece, int64_t layer, bool is_hedge)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);
  void SendChosen(DispatchTicket* ticket);
  void SendTo(int endpoint, absl::Span<const uint32_t> pieces,
              DispatchTicket* ticket);
  // The next message for the endpoint, entered everywhere; null: none is left.
  BatchAttempt* NextAttempt(int endpoint, DispatchTicket* ticket);
  // Counts the piece's rows if they cross to this endpoint.
  void CountCrossed(const RowPiece& piece, int endpoint,
                    DispatchTicket* ticket);
  void SetTimes(BatchAttempt* attempt, bool has_alternatives)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);

  // Takes answered attempts out of the exchange.
  void TakeAnswered(DispatchTicket* ticket)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);
  // Its pieces that failed become unsent, or fail for good.
  void TakeBack(BatchAttempt* attempt, DispatchTicket* ticket)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);
  bool IsLost(const RowPiece& piece, const BatchAttempt& attempt,
              DispatchTicket* ticket)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);
  // The piece failed at one of several: overdue ones that have it look for
  // somebody else anew.
  void AttendAgain(uint32_t index, DispatchTicket* ticket)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);
  // Waits no more for what is in flight.
  void Abandon(DispatchTicket* ticket)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);
  // Asks others for what is late; returns when to look again.
  absl::Duration AttendLate(absl::Duration now, DispatchTicket* ticket,
                            MustWait must_wait);
  void AttendOverdue(BatchAttempt* attempt, absl::Duration now,
                     DispatchTicket* ticket, MustWait must_wait);
  // Whether an attempt beside this one has the piece and is not overdue.
  static bool IsExpectedElsewhere(uint32_t index, const BatchAttempt& attempt,
                                  const DispatchTicket& ticket);
  // Whether anybody could be asked for what `late` has not brought yet.
  bool AskOthers(BatchAttempt* late, bool is_hedge, DispatchTicket* ticket);
  static bool AnyUncovered(const DispatchTicket& ticket);
  // Whether uncovered rows are to go on waiting.
  bool IsWorthWaiting(const DispatchTicket& ticket, MustWait must_wait) const;
  void FailUncovered(DispatchTicket* ticket);
  void FailPiece(uint32_t index, const absl::Status& status,
                 DispatchTicket* ticket)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);

  const DispatcherOptions options_;
  PlacementTable* const table_;
  ExpertTransport* const transport_;
  const DispatchMetrics metrics_;
  const std::shared_ptr<DispatchState> state_;
  BatchBuilder builder_;
  HedgePolicy hedging_;
  std::shared_ptr<const Placement> published_;  // the latest seen
  absl::Duration published_at_;
  // The same without what endpoints turned out not to host.
  std::shared_ptr<const Placement> placement_;
  // Of this step.
  absl::Duration uncovered_left_;
  absl::Duration cross_left_;
  int64_t num_crossed_rows_ = 0;
  // Some rows were kept from crossing when they were last looked at.
  bool is_held_back_ = false;

  // Scratch.
  std::vector<std::vector<uint32_t>> chosen_;  // [endpoint] pieces
  std::vector<uint32_t> wanted_;
  std::vector<BatchAttempt*> late_;
};

}  // namespace expertmesh::router
