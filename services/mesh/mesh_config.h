#pragma once

// The pools of a mesh: read from a mesh file, or one pool of given addresses.
// The file's schema is protos/expertmesh/mesh/v1/mesh.proto.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/checkpoint/model_config.h"
#include "services/checkpoint/slot_list.h"
#include "services/runtime/address.h"

namespace expertmesh {

// Where a pool's services are: one of the three is given. None: whoever reads
// the file starts them.
struct PoolTarget {
  std::optional<HostPort> dns;         // each address of the name is a service
  std::string file;                    // path of a file of addresses
  std::vector<std::string> addresses;  // "host:port", each a service

  bool is_given() const {
    return dns.has_value() || !file.empty() || !addresses.empty();
  }
  // As Pool.target describes it.
  std::string ToString() const;
};

struct PoolConfig {
  std::string name;
  PoolTarget target;
  std::string device;  // "": any
  bool is_managed = false;
  // Not managed: what each service holds, ascending; empty: not known before
  // they say so.
  std::vector<ExpertSlot> slots;
  // Managed: of each service; 0: as it announces.
  uint64_t memory_budget_bytes = 0;
  double weight = 1;
  uint32_t min_replicas = 1;    // ≥ 1
  uint32_t max_replicas = 0;    // 0: no bound
  std::string tls_server_name;  // of its services; "": their address's host
};

struct MeshConfig {
  std::string expert_dtype;  // of all weights; "": as the first service in use
  std::vector<PoolConfig> pools;
};

// The pool of --experts-at.
constexpr char kStaticPoolName[] = "experts";

// The name that certificates of a pool's services must be for; "": each
// address's host.
std::string TlsServerName(const PoolConfig& pool);

// Whether pools may lack a target.
enum class Targets { kRequired, kOptional };

// Reads and checks a mesh file for a model.
// Errors: INVALID_ARGUMENT, one line naming the file, the pool and the field.
absl::StatusOr<MeshConfig> ReadMeshFile(const std::string& path,
                                        const ModelConfig& model,
                                        Targets targets = Targets::kRequired);

// The inverse: what a mesh file that says this would hold.
std::string FormatMeshFile(const MeshConfig& mesh, const ModelConfig& model);

// One pool named kStaticPoolName of these "host:port"s.
// Errors: INVALID_ARGUMENT for no address, a malformed one, or one twice.
absl::StatusOr<MeshConfig> MeshOfAddresses(
    const std::vector<std::string>& addresses);

// Parses what Pool.target describes. Errors: INVALID_ARGUMENT.
absl::StatusOr<PoolTarget> ParsePoolTarget(absl::string_view text);

}  // namespace expertmesh
