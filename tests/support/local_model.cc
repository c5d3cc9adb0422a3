#include "tests/support/local_model.h"

#include <algorithm>

#include "services/core/status_macros.h"

namespace expertmesh::testing {

using router::TokenBatch;
using router::Transformer;

absl::StatusOr<std::unique_ptr<LocalModel>> LocalModel::Load(
    const std::string& directory, const LocalModelOptions& options) {
  auto model = std::make_unique<LocalModel>();
  model->options = options;
  ASSIGN_OR_RETURN(model->checkpoint, Checkpoint::Open(directory));
  const ModelConfig& config = model->config();
  model->pool = std::make_unique<WorkerPool>(options.num_threads);
  router::ExpertTransport* transport = options.transport;
  router::PlacementTable* placement = options.placement;
  if (transport == nullptr) {
    ASSIGN_OR_RETURN(
        model->local_transport,
        LocalTransport::Load(*model->checkpoint,
                             {.num_endpoints = options.num_endpoints,
                              .is_replicated = options.is_replicated,
                              .adds_rows = options.adds_rows,
                              .format = options.expert_format},
                             model->pool.get()));
    transport = model->local_transport.get();
    model->local_placement = std::make_unique<router::PlacementTable>(
        model->local_transport->placement());
    placement = model->local_placement.get();
  }
  ASSIGN_OR_RETURN(model->weights,
                   router::DenseWeights::Load(
                       *model->checkpoint, {.format = options.router_format}));
  router::DispatcherOptions dispatch;
  dispatch.wire_dtype = options.wire_dtype;
  dispatch.hidden_size = config.hidden_size;
  dispatch.max_tokens = options.max_step_tokens;
  dispatch.top_k = config.top_k;
  dispatch.combine_group_size = options.combine_group_size;
  dispatch.max_message_bytes = options.max_message_bytes;
  dispatch.uncovered_timeout = options.uncovered_timeout;
  model->dispatcher =
      std::make_unique<router::Dispatcher>(dispatch, placement, transport);
  router::TransformerOptions transformer;
  transformer.dtype = options.router_dtype;
  transformer.max_tokens = options.max_step_tokens;
  transformer.micro_batches = options.micro_batches;
  transformer.max_context_tokens = options.max_context_tokens;
  transformer.capacity = options.capacity;
  model->transformer =
      std::make_unique<Transformer>(config, model->weights, transformer,
                                    model->dispatcher.get(), model->pool.get());
  model->cache = std::make_unique<router::KvCache>(
      config, options.kv_format.value_or(KvFormatOf(options.router_dtype)),
      options.kv_cache_tokens / kPageTokens);
  return model;
}

std::vector<float> SingleSequence::Append(const std::vector<int32_t>& tokens,
                                          int64_t chunk_tokens,
                                          router::RoutingObserver* observer) {
  const int64_t vocab = model_.config().vocab_size;
  const int64_t total = static_cast<int64_t>(tokens.size());
  std::vector<float> logits(total * vocab);
  for (int64_t first = 0; first < total; first += chunk_tokens) {
    const int64_t last = std::min(total, first + chunk_tokens);
    TokenBatch batch;
    batch.Clear();
    for (int64_t i = first; i < last; ++i) {
      batch.token_ids.push_back(tokens[i]);
      batch.positions.push_back(static_cast<int32_t>(position_));
      batch.slot_mapping.push_back(static_cast<int32_t>(position_));
      batch.policy.push_back(router::OverflowPolicy::kWait);
      ++position_;
    }
    batch.seq_starts.push_back(static_cast<int32_t>(last - first));
    batch.max_blocks =
        static_cast<int32_t>((position_ + kPageTokens - 1) / kPageTokens);
    for (int32_t page = 0; page < batch.max_blocks; ++page) {
      batch.block_tables.push_back(page);
    }
    model_.transformer->Forward(batch, model_.cache.get(), observer);
    for (const absl::Status& status : model_.transformer->token_status()) {
      if (!status.ok()) throw std::runtime_error(status.ToString());
    }
    for (int64_t row = 0; row < last - first;
         row += Transformer::kMaxLogitRows) {
      std::vector<int32_t> rows;
      for (int64_t i = row;
           i < std::min(last - first, row + Transformer::kMaxLogitRows); ++i) {
        rows.push_back(static_cast<int32_t>(i));
      }
      model_.transformer->Logits(rows, &logits[(first + row) * vocab]);
    }
  }
  return logits;
}

}  // namespace expertmesh::testing
