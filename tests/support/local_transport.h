#pragma once

// Experts in the router's own process, for tests and benchmarks.

#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "expert_service/kernels/grouped_ffn.h"
#include "expert_service/weights/expert_weights.h"
#include "router_service/dispatch/placement.h"
#include "router_service/transport/expert_transport.h"
#include "services/checkpoint/checkpoint.h"
#include "services/core/worker_pool.h"
#include "services/linalg/buffer.h"

namespace expertmesh::testing {

struct LocalTransportOptions {
  int num_endpoints = 1;  // experts are split over them in contiguous ranges
  bool is_replicated = false;  // instead, each has all of them
  bool adds_rows = true;       // announces that it can
  int64_t max_rows = 4096;     // of one batch
  std::optional<WeightFormat> format = std::nullopt;  // as --expert-dtype
};

// Runs every batch at once on the caller's thread and `pool`. Rounds at the
// same points as an expert service.
class LocalTransport final : public router::ExpertTransport {
 public:
  static absl::StatusOr<std::unique_ptr<LocalTransport>> Load(
      const Checkpoint& checkpoint, const LocalTransportOptions& options,
      WorkerPool* pool);

  void Send(int endpoint, const router::ExpertBatch& batch,
            router::BatchCompletion* completion) override;

  // Every slot at its endpoint.
  std::shared_ptr<const router::Placement> placement() const;

  // Batches to this endpoint fail from now on (or work again). Thread-safe.
  void SetDown(int endpoint, bool down) { down_[endpoint] = down; }

  // The next batches, this many, come back with a NaN in their first row.
  void Poison(int num_batches) { poisoned_ = num_batches; }
  // All of this endpoint do.
  void PoisonEndpoint(int endpoint) { poisoned_endpoint_ = endpoint; }

  int64_t num_batches() const { return num_batches_; }
  // Sums that came back instead of rows.
  int64_t num_sums() const { return num_sums_; }
  // Of rows and sums that came back.
  int64_t answer_bytes() const { return answer_bytes_; }

 private:
  struct Rows final : router::AnsweredRows {
    explicit Rows(const Buffer* y) : y(y) {}
    void Copy(size_t first, size_t last, std::byte* out) const override {
      std::memcpy(out, y->data() + first * row_bytes,
                  (last - first) * row_bytes);
    }
    void CopySum(size_t sum, std::byte* out) const override {
      const size_t hidden = sums.size() / num_sums;
      std::memcpy(out, sums.data() + sum * hidden, hidden * sizeof(float));
    }
    const Buffer* const y;
    size_t row_bytes = 0;
    size_t num_sums = 0;
    std::vector<float> sums;
  };

  LocalTransport(const ModelConfig& config,
                 const LocalTransportOptions& options, WorkerPool* pool);
  absl::Status Run(int endpoint, const router::ExpertBatch& batch);
  // Leaves in y_ the rows that come back by themselves, in rows_ the sums.
  void AddUp(const router::ExpertBatch& batch);

  const ModelConfig& config_;
  const LocalTransportOptions options_;
  std::vector<std::vector<int64_t>> experts_of_;  // by endpoint
  std::vector<std::unique_ptr<const expert::ExpertWeights>> weights_;
  std::unique_ptr<expert::GroupedFfn> ffn_;
  std::vector<std::atomic<bool>> down_;
  std::atomic<int64_t> num_batches_ = 0;
  std::atomic<int64_t> num_sums_ = 0;
  std::atomic<int64_t> answer_bytes_ = 0;
  int poisoned_ = 0;
  int poisoned_endpoint_ = -1;
  std::vector<const expert::LoadedExpert*> experts_;  // of the batch
  Buffer x_;
  Buffer y_;
  Rows rows_{&y_};
};

}  // namespace expertmesh::testing
