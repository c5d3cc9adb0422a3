#pragma once

// A whole router below the API in one object, for tests and benchmarks.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "router_service/dispatch/dispatcher.h"
#include "router_service/model/dense_weights.h"
#include "router_service/model/kv_cache.h"
#include "router_service/model/transformer.h"
#include "services/checkpoint/checkpoint.h"
#include "services/core/worker_pool.h"
#include "services/linalg/kv_format.h"
#include "tests/support/local_transport.h"

namespace expertmesh::testing {

struct LocalModelOptions {
  DType router_dtype = DType::kF32;
  std::optional<KvFormat> kv_format = std::nullopt;  // unset: router_dtype
  DType wire_dtype = DType::kF32;
  // As --router-dtype and --expert-dtype; unset: the checkpoint's.
  std::optional<WeightFormat> router_format = std::nullopt;
  std::optional<WeightFormat> expert_format = std::nullopt;
  int num_endpoints = 1;       // of the local transport
  bool is_replicated = false;  // likewise
  bool adds_rows = true;       // likewise
  int num_threads = 2;
  int micro_batches = 1;  // as TransformerOptions
  int64_t max_step_tokens = 512;
  int64_t max_context_tokens = 256;
  int64_t kv_cache_tokens = 2048;
  router::CapacityOptions capacity;
  int64_t combine_group_size = 1;
  int64_t max_message_bytes = 1 << 20;
  absl::Duration uncovered_timeout = absl::Milliseconds(200);
  // Used instead of a local transport, where given, with its placement.
  router::ExpertTransport* transport = nullptr;
  router::PlacementTable* placement = nullptr;
};

struct LocalModel {
  static absl::StatusOr<std::unique_ptr<LocalModel>> Load(
      const std::string& directory, const LocalModelOptions& options);

  LocalModelOptions options;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<WorkerPool> pool;
  std::unique_ptr<LocalTransport> local_transport;  // null with another one
  std::unique_ptr<router::PlacementTable> local_placement;
  router::DenseWeights weights;
  std::unique_ptr<router::Dispatcher> dispatcher;
  std::unique_ptr<router::Transformer> transformer;
  std::unique_ptr<router::KvCache> cache;

  const ModelConfig& config() const { return checkpoint->config(); }
};

// Runs one sequence without an engine: its pages are 0, 1, … of the cache.
class SingleSequence {
 public:
  explicit SingleSequence(LocalModel* model) : model_(*model) {}

  // Appends tokens in chunks of at most `chunk_tokens`; returns the logits of
  // each [tokens.size(), vocab_size]. Throws std::runtime_error where a token
  // could not be computed.
  std::vector<float> Append(const std::vector<int32_t>& tokens,
                            int64_t chunk_tokens,
                            router::RoutingObserver* observer = nullptr);

 private:
  LocalModel& model_;
  int64_t position_ = 0;
};

}  // namespace expertmesh::testing
