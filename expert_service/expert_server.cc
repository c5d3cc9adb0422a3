#include "expert_service/expert_server.h"

#include <unistd.h>

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "expert_service/weights/expert_loader.h"
#include "services/checkpoint/expert_range.h"
#include "services/core/clock.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/core/version.h"
#include "services/linalg/gemm.h"
#include "services/wire/batch_codec.h"

namespace expertmesh::expert {
namespace {

// Of protos/expertmesh/expert/v1; routers refuse another one.
constexpr uint32_t kWireVersion = 1;

// A router that is told of the drain sends its next batches elsewhere well
// within this.
constexpr absl::Duration kQuiet = absl::Milliseconds(250);
constexpr absl::Duration kQuietPoll = absl::Milliseconds(10);

absl::StatusOr<std::vector<int64_t>> ChooseExperts(const std::string& list,
                                                   int64_t num_experts) {
  if (list.empty()) {
    return ParseExpertList(absl::StrCat("0-", num_experts - 1), num_experts);
  }
  const auto experts = ParseExpertList(list, num_experts);
  if (experts.ok()) return experts;
  return absl::InvalidArgumentError(
      absl::StrCat("--experts: ", experts.status().message()));
}

void LogProgress(int64_t loaded, int64_t total) {
  static LogRateLimit limit;
  if (loaded < total && limit.Allow()) {
    Log(LogLevel::kInfo, "packing experts",
        {{"loaded_slots", loaded}, {"total_slots", total}});
  }
}

}  // namespace

ExpertServer::ExpertServer(const ExpertConfig& config)
    : config_(config),
      registry_("expert", IsaName()),
      metrics_(registry_),
      pool_(config.threads > 0 ? config.threads : AvailableCpus()),
      queue_({.capacity_rows = config.queue_rows}, metrics_.queue) {}

absl::StatusOr<std::unique_ptr<ExpertServer>> ExpertServer::Start(
    const ExpertConfig& config) {
  auto server = std::unique_ptr<ExpertServer>(new ExpertServer(config));
  RETURN_IF_ERROR(server->Load());
  RETURN_IF_ERROR(server->Serve());
  return server;
}

absl::Status ExpertServer::Load() {
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(config_.model));
  const ModelConfig& model = checkpoint->config();
  ExpertLoadOptions options;
  ASSIGN_OR_RETURN(options.experts,
                   ChooseExperts(config_.experts, model.num_experts));
  expert_list_ = FormatExpertList(options.experts);
  options.dtype = ExpertWeightType(config_);
  options.pool = &pool_;
  options.progress = LogProgress;
  const absl::Duration started = Clock::Real()->Now();
  ASSIGN_OR_RETURN(weights_, LoadExperts(*checkpoint, options));
  load_ = std::make_unique<SlotLoad>(model.num_layers, model.num_experts);
  ffn_ = MakeGroupedFfnCpu({model.hidden_size, model.expert_intermediate_size,
                            config_.max_batch_rows, model.activation},
                           &pool_);
  endpoint_ = DescribeEndpoint(*checkpoint);
  metrics_.loaded_slots->Set(static_cast<double>(weights_->slots().size()));
  metrics_.memory_bytes->Set(static_cast<double>(weights_->size_bytes()));
  Log(LogLevel::kInfo, "experts loaded",
      {{"model", checkpoint->name()},
       {"experts", expert_list_},
       {"slots", weights_->slots().size()},
       {"bytes", weights_->size_bytes()},
       {"numerics_id", endpoint_.numerics_id()},
       {"seconds", absl::ToDoubleSeconds(Clock::Real()->Now() - started)}});
  return absl::OkStatus();
}

v1::EndpointState ExpertServer::DescribeEndpoint(
    const Checkpoint& checkpoint) const {
  const ModelConfig& model = checkpoint.config();
  v1::EndpointState endpoint;
  endpoint.set_model_type(model.model_type);
  endpoint.set_hidden_size(static_cast<uint32_t>(model.hidden_size));
  endpoint.set_num_layers(static_cast<uint32_t>(model.num_layers));
  endpoint.set_num_experts(static_cast<uint32_t>(model.num_experts));
  endpoint.set_checkpoint_fingerprint(checkpoint.fingerprint());
  DType dtype = model.dtype;
  v1::HostedExperts* hosted = nullptr;
  for (const ExpertSlot& slot : weights_->slots()) {
    if (hosted == nullptr || hosted->layer() != slot.layer) {
      hosted = endpoint.add_hosted();
      hosted->set_layer(static_cast<uint32_t>(slot.layer));
    }
    hosted->add_expert_ids(static_cast<uint32_t>(slot.expert));
    dtype = weights_->Find(slot.layer, slot.expert)->gate_proj.dtype();
  }
  endpoint.set_expert_dtype(std::string(DTypeName(dtype)));
  endpoint.set_numerics_id(
      absl::StrCat("cpu-", IsaName(), "-", DTypeName(dtype), "-v1"));
  endpoint.set_memory_bytes(weights_->size_bytes());
  endpoint.set_device("cpu");
  endpoint.set_version(std::string(Version()));
  endpoint.set_wire_version(kWireVersion);
  return endpoint;
}

absl::Status ExpertServer::Serve() {
  executor_ = std::make_unique<ExpertExecutor>(
      ExpertExecutor::Options{endpoint_.hidden_size(), config_.max_batch_rows},
      metrics_.executor,
      ExpertExecutor::Parts{&queue_, weights_.get(), ffn_.get(), &replies_,
                            load_.get()});
  service_ = std::make_unique<ExpertServiceImpl>(
      ExpertServiceImpl::Options{endpoint_}, metrics_.service, &queue_,
      load_.get());
  ASSIGN_OR_RETURN(metrics_server_,
                   MetricsServer::Start(config_.metrics_listen, registry_));
  GrpcServerOptions options;
  options.listen = config_.listen;
  options.max_receive_bytes = static_cast<int>(kMaxMessageBytes);
  options.health_names = {v1::ExpertService::service_full_name()};
  ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(options, {service_.get()}));
  grpc_->SetServing(true);
  Log(LogLevel::kInfo, "serving",
      {{"grpc", grpc_->address()}, {"metrics", metrics_server_->url()}});
  return absl::OkStatus();
}

std::string ExpertServer::ReadyJson() const {
  nlohmann::ordered_json json;
  json["grpc"] = grpc_->address();
  json["metrics"] = metrics_server_->url();
  json["pid"] = getpid();
  json["experts"] = expert_list_;
  return json.dump();
}

void ExpertServer::Drain() {
  Log(LogLevel::kInfo, "draining");
  const absl::Duration timeout = absl::Seconds(config_.drain_timeout_seconds);
  const absl::Duration deadline = Clock::Real()->Now() + timeout;
  grpc_->SetServing(false);
  service_->AnnounceDrain();
  AwaitQuiet(timeout);
  service_->EndStreams();
  // Ours have ended; what is left are watchers of health, who would stay.
  grpc_->Shutdown(std::min(absl::Seconds(1), deadline - Clock::Real()->Now()));
  Log(LogLevel::kInfo, "drained");
}

void ExpertServer::AwaitQuiet(absl::Duration timeout) const {
  const Clock& clock = *Clock::Real();
  const absl::Duration deadline = clock.Now() + timeout;
  absl::Duration quiet_since = clock.Now();
  int64_t seen_works = queue_.TotalWorks();
  while (clock.Now() < deadline && clock.Now() - quiet_since < kQuiet) {
    absl::SleepFor(kQuietPoll);
    const int64_t works = queue_.TotalWorks();
    if (works != seen_works || queue_.PendingRows() > 0) {
      seen_works = works;
      quiet_since = clock.Now();
    }
  }
}

}  // namespace expertmesh::expert
