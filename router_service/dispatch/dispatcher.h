#pragma once

// Stop 5d: rows of a plan → messages to endpoints → rows back.

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "router_service/dispatch/dispatch_plan.h"
#include "router_service/dispatch/placement.h"
#include "router_service/transport/expert_transport.h"
#include "services/core/mutex.h"
#include "services/linalg/buffer.h"
#include "services/wire/payload_pool.h"

namespace expertmesh::router {

struct DispatcherOptions {
  DType wire_dtype = DType::kF32;
  int64_t hidden_size = 0;
  int64_t max_tokens = 0;  // of one step
  int64_t top_k = 0;
  // Larger messages go in parts by token range.
  int64_t max_message_bytes = 1 << 20;
  // A batch unanswered for this long fails.
  absl::Duration timeout = absl::Seconds(30);
};

// The exchange of one layer of one step. Reused from layer to layer; what it
// needs is allocated once.
class DispatchTicket {
 public:
  explicit DispatchTicket(const DispatcherOptions& options);
  ~DispatchTicket();

  // Valid after Dispatcher::Finish.
  // Expert outputs [num_rows, hidden_size] of the wire's type, in the order the
  // messages had; row_position [plan.num_rows()] finds a row of the plan.
  const std::byte* rows() const { return rows_.data(); }
  const std::vector<uint32_t>& row_position() const { return row_position_; }

  // Rows that did not come back, by token: their outputs are undefined.
  struct Failure {
    uint32_t token;
    absl::Status status;
  };
  const std::vector<Failure>& failures() const { return failures_; }

 private:
  friend class Dispatcher;
  class Message;

  int64_t layer_ = 0;
  const float* hidden_states_ = nullptr;
  const DispatchPlan* plan_ = nullptr;
  std::shared_ptr<const Placement> placement_;

  Buffer rows_;
  std::vector<uint32_t> row_position_;
  uint32_t next_position_ = 0;
  std::vector<Failure> failures_;

  // Messages are reused; the first `num_messages_` are in use by this wave.
  std::vector<std::unique_ptr<Message>> messages_;
  size_t num_messages_ = 0;

  Mutex mutex_;
  CondVar all_answered_;
  int unanswered_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Sends the rows of a plan to the endpoints that host them: one message per
// endpoint, layer and wave below max_message_bytes. Each token's activation is
// in a message once. One thread.
class Dispatcher {
 public:
  // `transport` must outlive this.
  Dispatcher(const DispatcherOptions& options, ExpertTransport* transport);

  // Forgets which endpoints failed: within a step an endpoint that was lost or
  // did not answer in time is not asked again, so that a stuck one costs one
  // timeout a step and not one a layer.
  void BeginStep();

  // Sends the first wave. `hidden_states` [num_tokens, hidden_size] f32
  // (rounded to the wire's type on the way) and `plan` stay valid until Finish.
  void Begin(int64_t layer, const float* hidden_states,
             const DispatchPlan& plan,
             std::shared_ptr<const Placement> placement,
             DispatchTicket* ticket);

  const DispatcherOptions& options() const { return options_; }

  // Blocks until every row of every wave is back or has failed. A batch that an
  // endpoint refused because its queue was full is sent again, for as long as
  // the timeout. Faults of the mesh are UNAVAILABLE (or INTERNAL) whatever the
  // transport called them: another code would blame the client.
  void Finish(DispatchTicket* ticket);

 private:
  void SendWave(int64_t wave, DispatchTicket* ticket);
  void SendToEndpoint(int endpoint, const std::vector<uint32_t>& groups,
                      DispatchTicket* ticket);
  DispatchTicket::Message* BuildMessage(const std::vector<uint32_t>& groups,
                                        uint32_t first_token,
                                        uint32_t last_token,
                                        DispatchTicket* ticket);
  void Await(DispatchTicket* ticket);
  void AwaitAnswers(DispatchTicket* ticket);
  bool ResendRefused(DispatchTicket* ticket);
  void FailRows(const absl::Status& status, DispatchTicket::Message& message,
                DispatchTicket* ticket);
  void Send(DispatchTicket::Message* message, DispatchTicket* ticket);
  PayloadRef Gather(const DispatchTicket& ticket, size_t first, size_t last);

  const DispatcherOptions options_;
  ExpertTransport* const transport_;
  PayloadPool payloads_;
  // [endpoint] why it is not asked any more in this step; OK: it is.
  std::vector<absl::Status> lost_;
  // Scratch of the endpoint being served.
  std::vector<std::vector<uint32_t>> endpoint_groups_;
  std::vector<uint32_t> tokens_;       // its tokens, ascending
  std::vector<uint32_t> local_index_;  // [max_tokens] token → index in tokens_
  std::vector<uint8_t> is_needed_;     // [max_tokens]
};

}  // namespace expertmesh::router
