#include "tests/support/local_transport.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "expert_service/weights/expert_loader.h"
#include "services/core/status_macros.h"
#include "services/linalg/activation_row.h"

namespace expertmesh::testing {

LocalTransport::LocalTransport(const ModelConfig& config,
                               const LocalTransportOptions& options,
                               WorkerPool* pool)
    : config_(config),
      options_(options),
      ffn_(expert::MakeGroupedFfnCpu(
          {.hidden_size = config.hidden_size,
           .intermediate_size = config.expert_intermediate_size,
           .max_rows = options.max_rows,
           .activation = config.activation,
           .quantized = options.format && IsQuantized(*options.format)},
          pool)),
      down_(options.num_endpoints),
      x_(options.max_rows * config.hidden_size * sizeof(float)),
      y_(options.max_rows * config.hidden_size * sizeof(float)) {}

absl::StatusOr<std::unique_ptr<LocalTransport>> LocalTransport::Load(
    const Checkpoint& checkpoint, const LocalTransportOptions& options,
    WorkerPool* pool) {
  const ModelConfig& config = checkpoint.config();
  std::unique_ptr<LocalTransport> transport(
      new LocalTransport(config, options, pool));
  const int64_t endpoints = options.num_endpoints;
  for (int64_t endpoint = 0; endpoint < endpoints; ++endpoint) {
    expert::ExpertLoadOptions load;
    load.format = options.format;
    load.pool = pool;
    const int64_t part = options.is_replicated ? 0 : endpoint;
    const int64_t parts = options.is_replicated ? 1 : endpoints;
    for (int64_t e = part * config.num_experts / parts;
         e < (part + 1) * config.num_experts / parts; ++e) {
      load.experts.push_back(e);
    }
    ASSIGN_OR_RETURN(auto weights, expert::LoadExperts(checkpoint, load));
    transport->experts_of_.push_back(load.experts);
    transport->weights_.push_back(std::move(weights));
  }
  return transport;
}

std::shared_ptr<const router::Placement> LocalTransport::placement() const {
  auto placement = std::make_shared<router::Placement>(config_.num_layers,
                                                       config_.num_experts);
  for (size_t endpoint = 0; endpoint < experts_of_.size(); ++endpoint) {
    if (options_.adds_rows) {
      placement->set_adds_rows(static_cast<int>(endpoint));
    }
    for (const int64_t expert : experts_of_[endpoint]) {
      for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
        placement->Add(layer, expert, static_cast<int>(endpoint));
      }
    }
  }
  return placement;
}

void LocalTransport::Send(int endpoint, const router::ExpertBatch& batch,
                          router::BatchCompletion* completion) {
  rows_.row_bytes = RowBytes(batch.dtype, batch.hidden_size);
  router::BatchAnswer answer;
  answer.status = Run(endpoint, batch);
  if (answer.status.ok()) answer.rows = &rows_;
  completion->Done(answer);
}

absl::Status LocalTransport::Run(int endpoint,
                                 const router::ExpertBatch& batch) {
  ++num_batches_;
  if (down_[endpoint]) {
    return absl::UnavailableError(
        absl::StrCat("endpoint ", endpoint, " is down"));
  }
  if (static_cast<int64_t>(batch.num_rows()) > options_.max_rows) {
    return absl::InvalidArgumentError("batch larger than max_rows");
  }
  experts_.clear();
  for (const uint32_t expert : batch.expert_ids) {
    experts_.push_back(weights_[endpoint]->Find(batch.layer, expert));
    if (experts_.back() == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("expert ", expert, " is not at endpoint ", endpoint));
    }
  }
  const size_t row_bytes = RowBytes(batch.dtype, batch.hidden_size);
  for (size_t row = 0; row < batch.num_rows(); ++row) {
    std::memcpy(x_.data() + row * row_bytes,
                batch.hidden_states.data() + batch.row_token[row] * row_bytes,
                row_bytes);
  }
  expert::GroupedRows rows;
  rows.experts = experts_;
  rows.group_offsets = batch.group_offsets;
  rows.dtype = batch.dtype;
  rows.x = x_.data();
  rows.y = y_.data();
  RETURN_IF_ERROR(ffn_->Run(rows));
  // All bits set are a NaN in every type, of the scale in int8.
  if (endpoint == poisoned_endpoint_ || (poisoned_ > 0 && poisoned_--)) {
    std::memset(y_.data(), 0xff, row_bytes);
  }
  AddUp(batch);
  return absl::OkStatus();
}

void LocalTransport::AddUp(const router::ExpertBatch& batch) {
  const size_t hidden = batch.hidden_size;
  const size_t row_bytes = RowBytes(batch.dtype, hidden);
  rows_.num_sums = batch.num_sums;
  rows_.sums.assign(batch.num_sums * hidden, 0.0f);
  num_sums_ += batch.num_sums;
  answer_bytes_ += static_cast<int64_t>(batch.num_lone_rows() * row_bytes +
                                        rows_.sums.size() * sizeof(float));
  if (batch.num_sums == 0) return;
  std::byte* lone = y_.data();
  for (size_t row = 0; row < batch.num_rows(); ++row) {
    const std::byte* const y = y_.data() + row * row_bytes;
    if (batch.row_sum[row] == kNoSum) {
      std::memmove(lone, y, row_bytes);
      lone += row_bytes;
      continue;
    }
    AddScaledRow(batch.row_weight[row], y, batch.dtype, 0,
                 static_cast<int64_t>(hidden),
                 rows_.sums.data() + batch.row_sum[row] * hidden);
  }
}

}  // namespace expertmesh::testing
