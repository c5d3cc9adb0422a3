#include "tests/support/remote_model.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router_service/dispatch/endpoint_placement.h"
#include "services/core/mutex.h"
#include "services/core/status_macros.h"

namespace expertmesh::testing {
namespace {

// Shared with the endpoints' callback, which may still run when Load gives up.
struct Readiness {
  Mutex mutex;
  CondVar changed;
  bool all_ready ABSL_GUARDED_BY(mutex) = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RemoteModel>> RemoteModel::Load(
    const std::string& directory, LocalModelOptions options, int num_services,
    bool shared_memory, std::vector<std::string> flags) {
  auto out = std::make_unique<RemoteModel>();
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(directory));
  const ModelConfig& config = checkpoint->config();
  if (options.expert_format) {
    flags.push_back(absl::StrCat("--expert-dtype=",
                                 WeightFormatName(*options.expert_format)));
  }
  ASSIGN_OR_RETURN(out->processes,
                   ExpertProcesses::Start(directory, config.num_experts,
                                          num_services, flags));
  const auto readiness = std::make_shared<Readiness>();
  router::EndpointSet::Options endpoint_options;
  endpoint_options.shared_memory = shared_memory;
  endpoint_options.model = {
      .model_type = config.model_type,
      .hidden_size = static_cast<uint32_t>(config.hidden_size),
      .num_layers = static_cast<uint32_t>(config.num_layers),
      .num_experts = static_cast<uint32_t>(config.num_experts),
      .checkpoint_fingerprint = checkpoint->fingerprint(),
      .expert_dtype = ""};
  out->placement = std::make_unique<router::PlacementTable>(
      router::PlaceOnEndpoints(config, {}, "").placement);
  endpoint_options.on_change =
      [readiness, config, placement = out->placement.get()](
          const std::vector<router::EndpointInfo>& endpoints) {
        placement->Set(router::PlaceOnEndpoints(
                           config, endpoints, router::MeshNumericsId(endpoints))
                           .placement);
        MutexLock lock(&readiness->mutex);
        const auto is_ready = [](const router::EndpointInfo& endpoint) {
          return endpoint.state == router::EndpointState::kReady;
        };
        readiness->all_ready =
            !endpoints.empty() &&
            std::all_of(endpoints.begin(), endpoints.end(), is_ready);
        readiness->changed.NotifyAll();
      };
  out->endpoints =
      std::make_unique<router::EndpointSet>(std::move(endpoint_options));
  out->endpoints->SetAddresses("experts", out->processes->addresses());
  {
    MutexLock lock(&readiness->mutex);
    if (!readiness->changed.WaitFor(lock, absl::Seconds(30),
                                    [&] { return readiness->all_ready; })) {
      return absl::DeadlineExceededError("the expert services are not ready");
    }
  }
  // Processes of a busy machine may be late without being lost.
  options.uncovered_timeout = absl::Minutes(1);
  options.transport = out->endpoints->transport();
  options.placement = out->placement.get();
  ASSIGN_OR_RETURN(out->model, LocalModel::Load(directory, options));
  return out;
}

}  // namespace expertmesh::testing
