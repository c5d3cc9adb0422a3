#pragma once

// One request's state in the engine.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "router_service/dispatch/routing.h"
#include "router_service/engine/request_trace.h"
#include "router_service/engine/sampler.h"

namespace expertmesh::router {

enum class FinishReason {
  kStop,       // a stop id was sampled
  kStopped,    // the sink asked for it, as at a stop string
  kLength,     // max_tokens, or the context's end
  kCancelled,  // by the client or its deadline
  kError,
};

// A request with every default filled in.
struct SequenceRequest {
  std::string request_id;
  std::vector<int32_t> prompt;  // not empty; ids below the vocabulary's size
  int64_t max_tokens = 0;       // 0: nothing is generated, as for scoring
  int64_t min_tokens = 0;
  SamplingParams sampling;
  std::vector<int32_t> stop_ids;
  std::optional<int32_t> logprobs;         // number of alternatives
  std::optional<int32_t> prompt_logprobs;  // number of alternatives
  OverflowPolicy policy = OverflowPolicy::kWait;
  bool exact = false;  // no policy changes it, that of mixing neither
  bool expert_counts = false;
  int32_t priority = 0;  // higher goes first
  std::optional<RequestTrace> trace;
};

class TokenSink;

// What sequences are ordered by for whatever is scarce: turn, then id.
using SequenceOrder = std::pair<absl::Duration, uint64_t>;

// Belongs to the engine's thread. Sinks read it during their calls.
struct Sequence {
  uint64_t id = 0;
  SequenceRequest request;
  std::shared_ptr<TokenSink> sink;
  // Rows may go to services of any numerics_id; then it shares pages only with
  // others of which the same is true.
  bool may_mix = false;

  std::vector<int32_t> tokens;  // prompt, then generated
  int64_t num_computed = 0;     // tokens whose keys and values are in `pages`
  // Of these, tokens up to the first that a policy changed or that crossed to
  // another numerics_id without being one that may: the keys and values of
  // others may depend on who shared their step, so nobody else may see them.
  int64_t num_exact = 0;
  // Tokens in the account below, or found in the prefix cache before they were;
  // computing one again does not count again.
  int64_t num_accounted = 0;
  int64_t num_cached = 0;        // of these, found
  int64_t num_newly_cached = 0;  // of these, and nothing computed since
  std::vector<int32_t> pages;    // of the KV cache, in order of position
  int64_t num_shared_pages = 0;  // the first of them, which others may find
  int64_t num_steps = 0;         // that it took part in
  int64_t chunk_tokens = 0;      // of the step that is being scheduled

  // While waiting: a running sequence that computes what this one will share,
  // and how many tokens that is. Zero: not known of any.
  SequenceOrder awaited;
  int64_t num_awaited = 0;

  std::vector<TokenLogprob> prompt_logprobs;  // of prompt tokens 1, 2, …
  RoutingAccount routing;
  // Rows by slot [num_layers, num_experts], where the request asked for them.
  std::vector<uint32_t> expert_rows;

  absl::Duration arrival;      // by the engine's clock
  absl::Duration turn;         // arrival, less what the priority is worth
  absl::Duration first_step;   // zero: not yet
  absl::Duration last_token;   // when the newest token was sampled; zero: none
  absl::Duration first_token;  // zero: none yet

  int64_t prompt_size() const {
    return static_cast<int64_t>(request.prompt.size());
  }
  SequenceOrder order() const { return {turn, id}; }
  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_generated() const { return size() - prompt_size(); }
  // Tokens still to be run through the model before the next can be sampled.
  int64_t num_pending() const { return size() - num_computed; }
  absl::Span<const int32_t> generated() const {
    return absl::MakeConstSpan(tokens).subspan(prompt_size());
  }
};

// Where a sequence's tokens go. Called by the engine's thread, in order; must
// not block. OnFinish is the last call and comes exactly once.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  // `token` is the newest of sequence.tokens; `logprob` is null unless asked
  // for. Returns false to end the sequence here (kStopped).
  virtual bool OnToken(const Sequence& sequence, int32_t token,
                       const TokenLogprob* logprob) = 0;
  // `status` is OK unless the reason is kCancelled or kError.
  virtual void OnFinish(const Sequence& sequence, FinishReason reason,
                        const absl::Status& status) = 0;
};

}  // namespace expertmesh::router
