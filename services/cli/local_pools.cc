#include "services/cli/local_pools.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "services/checkpoint/slot_list.h"
#include "services/core/status_macros.h"
#include "services/runtime/ready_file.h"

namespace expertmesh {
namespace {

constexpr char kTypeFlag[] = "--expert-dtype";
// Of one pool without maxReplicas: more are surely a slip.
constexpr uint32_t kMaxServices = 256;

// Finds the first slot that no fixed pool holds; the router would wait for it
// without an end.
absl::Status CheckCoverage(const MeshConfig& mesh, const ModelConfig& model) {
  std::set<ExpertSlot> held;
  for (const PoolConfig& pool : mesh.pools) {
    held.insert(pool.slots.begin(), pool.slots.end());
  }
  for (int64_t layer = 0; layer < model.num_layers; ++layer) {
    if (!model.layers[layer].is_moe) continue;
    for (int64_t expert = 0; expert < model.num_experts; ++expert) {
      if (held.contains({layer, expert})) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("no fixed pool holds expert ", expert, " of layer ",
                       layer, "; services start with what fixed pools name"));
    }
  }
  return absl::OkStatus();
}

uint32_t FirstSize(const PoolConfig& pool) {
  return std::max(1u, pool.min_replicas);
}

}  // namespace

std::string LocalPool::ServiceName(uint32_t number) const {
  return absl::StrCat("expert service ", config.name, "/", number);
}

absl::Status LocalPool::CheckSize(uint32_t size) const {
  if (size < config.min_replicas) {
    return absl::InvalidArgumentError(absl::StrCat(
        "pool ", config.name, " has at least ", config.min_replicas,
        " services (minReplicas of the mesh file)"));
  }
  if (config.max_replicas > 0 && size > config.max_replicas) {
    return absl::InvalidArgumentError(
        absl::StrCat("pool ", config.name, " has at most ", config.max_replicas,
                     " services (maxReplicas of the mesh file)"));
  }
  if (size > kMaxServices) {
    return absl::InvalidArgumentError(
        absl::StrCat("pool ", config.name, " has at most ", kMaxServices,
                     " services on one machine"));
  }
  return absl::OkStatus();
}

int64_t LocalPools::NumFirst(const MeshConfig& mesh) {
  int64_t count = 0;
  for (const PoolConfig& pool : mesh.pools) {
    if (!pool.target.is_given()) count += FirstSize(pool);
  }
  return count;
}

absl::StatusOr<LocalPools> LocalPools::Create(MeshConfig mesh,
                                              const ModelConfig& model,
                                              LocalMesh commands,
                                              std::string managed_memory,
                                              std::string folder) {
  LocalPools out;
  out.managed_memory_ = std::move(managed_memory);
  out.folder_ = std::move(folder);
  const bool fills_itself = commands.router_flags["--rebalance"] == "auto";
  std::string& type = commands.expert_flags[kTypeFlag];
  if (type.empty()) type = mesh.expert_dtype;
  if (!mesh.expert_dtype.empty() && type != mesh.expert_dtype) {
    return absl::InvalidArgumentError(
        absl::StrCat(kTypeFlag, " is ", type, ", but expertDtype of the mesh ",
                     "file is ", mesh.expert_dtype));
  }
  if (type.empty()) commands.expert_flags.erase(kTypeFlag);
  out.commands_ = std::move(commands);

  for (PoolConfig& pool : mesh.pools) {
    if (pool.target.is_given()) {
      out.pools_of_others_.push_back(pool.name);
      continue;
    }
    LocalPool local;
    local.config = pool;
    local.experts = FormatSlotList(pool.slots, model);
    local.size = FirstSize(pool);
    pool.target.file = out.AddressFile(local);
    RETURN_IF_ERROR(local.CheckSize(local.size));
    out.pools_.push_back(std::move(local));
  }
  if (out.pools_of_others_.empty() && !fills_itself) {
    RETURN_IF_ERROR(CheckCoverage(mesh, model));
  }
  out.mesh_json_ = FormatMeshFile(mesh, model);
  return out;
}

absl::StatusOr<LocalPool*> LocalPools::Find(const std::string& name) {
  for (LocalPool& pool : pools_) {
    if (pool.config.name == name) return &pool;
  }
  const bool is_of_others =
      std::find(pools_of_others_.begin(), pools_of_others_.end(), name) !=
      pools_of_others_.end();
  if (is_of_others) {
    return absl::InvalidArgumentError(
        absl::StrCat("the services of pool ", name,
                     " were not started here: it has a target in the mesh "
                     "file"));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "there is no pool ", name, "; started here are ",
      absl::StrJoin(pools_, ", ", [](std::string* out, const LocalPool& pool) {
        absl::StrAppend(out, pool.config.name);
      })));
}

ServiceSpec LocalPools::Spec(const LocalPool& pool, uint32_t number) const {
  LocalMesh::FlagValues flags;
  if (pool.config.is_managed) {
    const uint64_t budget = pool.config.memory_budget_bytes;
    flags["--memory-budget"] =
        budget > 0 ? absl::StrCat(budget) : managed_memory_;
  }
  ServiceSpec spec =
      commands_.ExpertSpecOf(pool.ServiceName(number), pool.experts, flags);
  spec.pool = pool.config.name;
  return spec;
}

std::vector<ServiceSpec> LocalPools::AllSpecs() const {
  std::vector<ServiceSpec> specs;
  for (const LocalPool& pool : pools_) {
    for (uint32_t number = 1; number <= pool.size; ++number) {
      specs.push_back(Spec(pool, number));
    }
  }
  return specs;
}

std::string LocalPools::AddressFile(const LocalPool& pool) const {
  return absl::StrCat(folder_, "/", pool.config.name, ".addresses");
}

absl::Status LocalPools::WriteAddresses(
    const LocalPool& pool, const std::vector<std::string>& addresses) const {
  return WriteReadyFile(
      AddressFile(pool),
      addresses.empty() ? "none" : absl::StrJoin(addresses, "\n"));
}

std::string LocalPools::mesh_file() const {
  return absl::StrCat(folder_, "/mesh.json");
}

absl::Status LocalPools::WriteMeshFile() const {
  return WriteReadyFile(mesh_file(), mesh_json_);
}

}  // namespace expertmesh
