#pragma once

// A router without its API whose experts run in processes of their own.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "router_service/transport/endpoint_set.h"
#include "tests/support/expert_processes.h"
#include "tests/support/local_model.h"

namespace expertmesh::testing {

// Members end in the right order: the model first.
struct RemoteModel {
  // `shared_memory`: whether the services are reached by it, or over gRPC.
  // `options` without transport and placement; `flags` besides, for the
  // services. Waits until every expert is covered.
  static absl::StatusOr<std::unique_ptr<RemoteModel>> Load(
      const std::string& directory, LocalModelOptions options, int num_services,
      bool shared_memory = true, std::vector<std::string> flags = {});

  std::unique_ptr<ExpertProcesses> processes;
  std::unique_ptr<router::PlacementTable> placement;
  std::unique_ptr<router::EndpointSet> endpoints;
  std::unique_ptr<LocalModel> model;
};

}  // namespace expertmesh::testing
