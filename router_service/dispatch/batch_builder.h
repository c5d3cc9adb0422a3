#pragma once

// Pieces of rows for one endpoint → messages (stop 5d).

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "router_service/dispatch/batch_attempt.h"
#include "router_service/dispatch/combine_groups.h"
#include "router_service/dispatch/dispatch_plan.h"
#include "router_service/dispatch/traced_tokens.h"
#include "services/core/dtype.h"
#include "services/wire/payload_pool.h"

namespace expertmesh::router {

// Owns scratch memory and the payloads' buffers; one thread.
class BatchBuilder {
 public:
  struct Options {
    DType wire_dtype = DType::kF32;
    int64_t hidden_size = 0;
    int64_t max_tokens = 0;  // of one step
    int64_t top_k = 0;
    int64_t max_message_bytes = 0;  // of activations
  };
  explicit BatchBuilder(const Options& options);

  // Where rows come from.
  struct Source {
    uint32_t layer;
    const float* hidden_states;  // [num_tokens, hidden_size]
    const DispatchPlan* plan;
    const CombineGroups* groups;
    const PartialSums* sums;  // to be filled
    absl::Span<const TracedTokens> traced;
  };

  // Sets `wanted` aside for the Next calls that follow. They are indices into
  // *pieces; those that a message too large cuts in two get a new piece at its
  // end. Pieces that are on their way already must fit into one message.
  void Begin(const Source& source, absl::Span<const uint32_t> wanted,
             std::vector<RowPiece>* pieces);

  // Fills in the rows of the next message; false: none is left.
  bool Next(BatchAttempt* attempt);
  // Fills in the rest of the message that Next gave: each token's activation
  // once, rounded to the wire's type. Where it may, asks for the sum instead of
  // the rows of a token and combine group whose rows are all in this message,
  // if that is smaller. Touches no pieces.
  void FillBatch(bool may_sum, BatchAttempt* attempt);

 private:
  void CollectTokens();
  void AddRows(uint32_t index, uint32_t end_token, BatchAttempt* attempt);
  void AskForSums(BatchAttempt* attempt);
  // Those of one token.
  void AskForSumsOf(uint32_t token, BatchAttempt* attempt);
  // The contexts of traced requests with rows in the message.
  void AddTraces(BatchAttempt* attempt) const;
  PayloadRef Gather();

  const Options options_;
  PayloadPool payloads_;
  Source source_ = {};
  std::vector<RowPiece>* pieces_ = nullptr;
  std::vector<uint32_t> wanted_;  // by (expert, row)
  // The message that Next gave last has tokens_[first_, last_).
  size_t first_ = 0;
  size_t last_ = 0;
  std::vector<uint32_t> tokens_;       // of all wanted rows, ascending
  std::vector<uint32_t> local_index_;  // [max_tokens] token → index in tokens_
  std::vector<uint8_t> is_needed_;     // [max_tokens]
  std::vector<uint32_t> rows_;         // of the plan, those of the message
  // [max_tokens · top_k] row of the plan → of the message
  std::vector<int32_t> row_in_message_;
};

}  // namespace expertmesh::router
