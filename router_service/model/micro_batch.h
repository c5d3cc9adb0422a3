#pragma once

// Two micro-batches in turn: while the experts work for one, the router's
// attention works for the other. Source: arXiv:2504.02263 (ping-pong pipeline).

#include <array>
#include <cstdint>

#include "absl/time/time.h"
#include "router_service/model/moe_layer.h"
#include "router_service/model/token_batch.h"

namespace expertmesh::router {

// A part of a step's batch on its way through the layers.
struct MicroBatch {
  explicit MicroBatch(const DispatcherOptions& options) : ticket(options) {}

  int64_t first_token = 0;  // of the whole batch
  TokenBatch batch;
  MoeTicket ticket;
};

// Copies tokens [first, last) of `whole`, with the sequences they belong to,
// which may be cut anywhere: a later part attends to what an earlier one has
// written, as chunks of a prompt do.
void SliceBatch(const TokenBatch& whole, int64_t first, int64_t last,
                TokenBatch* part);

// Chooses between one and two micro-batches by the time steps took, for each
// magnitude of tokens by itself. Each is tried a few steps in a row, now and
// then, and goes by its median, as a single step may be late for any reason.
// One thread.
class MicroBatchPolicy {
 public:
  // `fixed`: 1 or 2; 0: by measured times.
  explicit MicroBatchPolicy(int fixed) : fixed_(fixed) {}

  int Choose(int64_t num_tokens);
  // A step of so many tokens took this long in so many micro-batches.
  void Observe(int64_t num_tokens, int count, absl::Duration taken);

 private:
  static constexpr int kTrial = 5;  // steps

  // Seconds a token took in the latest steps.
  struct Recent {
    void Add(double seconds) { latest[num_added++ % kTrial] = seconds; }
    double Median() const;

    std::array<double, kTrial> latest = {};
    int64_t num_added = 0;
  };
  struct Magnitude {
    int64_t steps = 0;
    std::array<Recent, 2> by_count;  // [count - 1]
  };
  static size_t MagnitudeOf(int64_t num_tokens);

  const int fixed_;
  std::array<Magnitude, 20> magnitudes_;
};

}  // namespace expertmesh::router
