#pragma once

// The pools of a mesh file whose services this launcher runs.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/checkpoint/model_config.h"
#include "services/cli/local_mesh.h"
#include "services/cli/supervisor.h"
#include "services/mesh/mesh_config.h"

namespace expertmesh {

// A pool and how many services it has. They are numbered from 1; the ones with
// the highest numbers go first.
struct LocalPool {
  PoolConfig config;
  std::string experts = {};  // for --experts
  uint32_t size = 0;

  // "expert service hot/2".
  std::string ServiceName(uint32_t number) const;
  // OK for a number of services it may have. Errors: INVALID_ARGUMENT.
  absl::Status CheckSize(uint32_t size) const;
};

// Pools without a target are ours; others are left to whoever runs them. The
// router finds ours by files of addresses (`file:///…`), and all of them by a
// mesh file that says so. Not thread-safe.
class LocalPools {
 public:
  // Files are put into `folder`. `commands` gives the services' flags; types of
  // weights are the mesh's where that has one, and managed services whose pool
  // has no budget get that of `managed_memory`, as in "512MiB".
  // Errors: INVALID_ARGUMENT where the types contradict each other, or all
  // pools are ours and none can hold some expert.
  static absl::StatusOr<LocalPools> Create(MeshConfig mesh,
                                           const ModelConfig& model,
                                           LocalMesh commands,
                                           std::string managed_memory,
                                           std::string folder);

  // Services that are started at first.
  static int64_t NumFirst(const MeshConfig& mesh);

  // In the order of the mesh file; at first as large as they must be, and no
  // smaller than one service.
  std::vector<LocalPool>& pools() { return pools_; }
  const std::vector<LocalPool>& pools() const { return pools_; }
  // Errors: INVALID_ARGUMENT saying which there are, or that it is not ours.
  absl::StatusOr<LocalPool*> Find(const std::string& name);

  ServiceSpec Spec(const LocalPool& pool, uint32_t number) const;
  std::vector<ServiceSpec> AllSpecs() const;

  // From now on these are the pool's services for the router.
  // Errors: UNAVAILABLE naming the file.
  absl::Status WriteAddresses(const LocalPool& pool,
                              const std::vector<std::string>& addresses) const;
  // The mesh file for the router. Errors: UNAVAILABLE.
  absl::Status WriteMeshFile() const;
  std::string mesh_file() const;

 private:
  LocalPools() = default;
  std::string AddressFile(const LocalPool& pool) const;

  LocalMesh commands_;
  std::string managed_memory_;
  std::string folder_;
  std::string mesh_json_;
  std::vector<std::string> pools_of_others_;
  std::vector<LocalPool> pools_;
};

}  // namespace expertmesh
