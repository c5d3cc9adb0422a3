#include "services/mesh/mesh_config.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "expertmesh/mesh/v1/mesh.pb.h"
#include "services/checkpoint/json_reader.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxNameLength = 63;
constexpr double kMaxWeight = 1000;
constexpr absl::string_view kDnsPrefix = "dns:///";
constexpr absl::string_view kFilePrefix = "file://";

absl::Status CheckName(absl::string_view name) {
  const auto is_plain = [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c);
  };
  const bool fits = !name.empty() && name.size() <= kMaxNameLength &&
                    is_plain(name.front()) && is_plain(name.back()) &&
                    std::all_of(name.begin(), name.end(), [&](char c) {
                      return is_plain(c) || c == '-';
                    });
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      Quoted(name), " is no name: it takes 1 to ", kMaxNameLength,
      " of a-z, 0-9 and '-', with a letter or digit at both ends"));
}

absl::Status ReadContents(const mesh::v1::Pool& pool, const ModelConfig& model,
                          PoolConfig* out) {
  if (pool.has_managed()) {
    out->is_managed = true;
    out->memory_budget_bytes = pool.managed().memory_budget_bytes();
    return absl::OkStatus();
  }
  if (!pool.has_fixed()) {
    return absl::InvalidArgumentError(
        "fixed or managed is missing: it says what the services hold");
  }
  auto slots = ParseSlots(pool.fixed().slots(), model);
  if (!slots.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("fixed.slots: ", slots.status().message()));
  }
  out->slots = *std::move(slots);
  return absl::OkStatus();
}

absl::Status ReadScaling(const mesh::v1::Pool& pool, PoolConfig* out) {
  out->tls_server_name = pool.tls_server_name();
  if (pool.has_weight()) out->weight = pool.weight();
  // Not a number is not above 0 either.
  if (!(out->weight > 0 && out->weight <= kMaxWeight)) {
    return absl::InvalidArgumentError(
        absl::StrCat("weight is ", out->weight,
                     "; it must be above 0 and at most ", kMaxWeight));
  }
  if (pool.has_min_replicas()) out->min_replicas = pool.min_replicas();
  if (out->min_replicas == 0) {
    return absl::InvalidArgumentError(
        "min_replicas is 0; it must be at least 1, for a pool without services "
        "counts no demand that could bring one back");
  }
  if (!pool.has_max_replicas()) return absl::OkStatus();
  out->max_replicas = pool.max_replicas();
  if (out->max_replicas == 0 || out->max_replicas < out->min_replicas) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_replicas is ", out->max_replicas,
        "; it must be at least 1 and min_replicas, ", out->min_replicas));
  }
  return absl::OkStatus();
}

absl::Status ReadTarget(const mesh::v1::Pool& pool, Targets targets,
                        PoolConfig* out) {
  if (pool.target().empty()) {
    if (targets == Targets::kOptional) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "target: is missing; only `expertmesh serve` starts services of pools "
        "without one");
  }
  auto target = ParsePoolTarget(pool.target());
  if (!target.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("target: ", target.status().message()));
  }
  out->target = *std::move(target);
  return absl::OkStatus();
}

absl::StatusOr<PoolConfig> ReadPool(const mesh::v1::Pool& pool,
                                    const ModelConfig& model, Targets targets) {
  PoolConfig out;
  out.name = pool.name();
  RETURN_IF_ERROR(ReadTarget(pool, targets, &out));
  out.device = pool.device();
  RETURN_IF_ERROR(ReadContents(pool, model, &out));
  RETURN_IF_ERROR(ReadScaling(pool, &out));
  return out;
}

// What the pool's services are known by, to find pools that share one.
std::vector<std::string> TargetKeys(const PoolTarget& target) {
  if (!target.addresses.empty() || !target.is_given()) return target.addresses;
  return {target.ToString()};
}

// Adds the next pool; `claimed` holds the pool of each target so far.
absl::Status AddPool(const mesh::v1::Pool& pool, const ModelConfig& model,
                     Targets targets,
                     std::map<std::string, std::string>* claimed,
                     MeshConfig* mesh) {
  for (const PoolConfig& other : mesh->pools) {
    if (other.name == pool.name()) {
      return absl::InvalidArgumentError(
          "name: another pool before it has the same");
    }
  }
  ASSIGN_OR_RETURN(PoolConfig read, ReadPool(pool, model, targets));
  for (const std::string& key : TargetKeys(read.target)) {
    const auto [it, is_new] = claimed->emplace(key, read.name);
    if (!is_new) {
      return absl::InvalidArgumentError(
          absl::StrCat("target: pool ", it->second, " has ", key, " too"));
    }
  }
  mesh->pools.push_back(std::move(read));
  return absl::OkStatus();
}

// The first line of a message of Protobuf's, which may draw a picture below.
absl::string_view FirstLine(absl::string_view message) {
  return absl::StripAsciiWhitespace(message.substr(0, message.find('\n')));
}

absl::StatusOr<mesh::v1::MeshConfig> ParseFile(const std::string& path) {
  // First as JSON alone, which finds repeated keys and bounds the depth.
  const auto json = ReadJsonFile(path, kMaxFileBytes);
  if (!json.ok()) return absl::InvalidArgumentError(json.status().message());
  mesh::v1::MeshConfig config;
  const auto parsed =
      google::protobuf::util::JsonStringToMessage(json->dump(), &config);
  if (parsed.ok()) return config;
  const std::string message(parsed.message());
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": ", FirstLine(message)));
}

}  // namespace

std::string PoolTarget::ToString() const {
  if (dns.has_value()) return absl::StrCat(kDnsPrefix, dns->ToString());
  if (!file.empty()) return absl::StrCat(kFilePrefix, file);
  return absl::StrJoin(addresses, ",");
}

absl::StatusOr<PoolTarget> ParsePoolTarget(absl::string_view text) {
  PoolTarget target;
  if (absl::StartsWith(text, absl::StrCat(kFilePrefix, "/"))) {
    target.file = std::string(absl::StripPrefix(text, kFilePrefix));
    return target;
  }
  const bool is_dns = absl::StartsWith(text, kDnsPrefix);
  if (!is_dns && text.find("://") != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quoted(text),
                     " is none of dns:///NAME:PORT, file:///PATH and "
                     "HOST:PORT,HOST:PORT,…"));
  }
  const absl::string_view list =
      is_dns ? absl::StripPrefix(text, kDnsPrefix) : text;
  std::set<std::string> seen;
  for (const absl::string_view part : absl::StrSplit(list, ',')) {
    ASSIGN_OR_RETURN(const HostPort parsed,
                     ParseHostPort(absl::StripAsciiWhitespace(part)));
    if (parsed.port == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("expert service ", part, " needs a port"));
    }
    target.addresses.push_back(parsed.ToString());
    if (!seen.insert(target.addresses.back()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("expert service ", part, " is given twice"));
    }
    if (is_dns) target.dns = parsed;
  }
  if (!is_dns) return target;
  if (target.addresses.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quoted(text), " holds more than one name"));
  }
  target.addresses.clear();
  return target;
}

absl::StatusOr<MeshConfig> ReadMeshFile(const std::string& path,
                                        const ModelConfig& model,
                                        Targets targets) {
  ASSIGN_OR_RETURN(const mesh::v1::MeshConfig config, ParseFile(path));
  if (config.pools().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": pools: the mesh needs at least one pool"));
  }
  MeshConfig mesh;
  mesh.expert_dtype = config.expert_dtype();
  std::map<std::string, std::string> claimed;
  for (int i = 0; i < config.pools_size(); ++i) {
    const mesh::v1::Pool& pool = config.pools(i);
    if (const absl::Status status = CheckName(pool.name()); !status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": pools[", i, "]: name: ", status.message()));
    }
    if (const absl::Status status =
            AddPool(pool, model, targets, &claimed, &mesh);
        !status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": pool ", pool.name(), ": ", status.message()));
    }
  }
  return mesh;
}

std::string TlsServerName(const PoolConfig& pool) {
  if (!pool.tls_server_name.empty() || !pool.target.dns.has_value()) {
    return pool.tls_server_name;
  }
  return pool.target.dns->host;
}

std::string FormatMeshFile(const MeshConfig& mesh, const ModelConfig& model) {
  mesh::v1::MeshConfig config;
  config.set_expert_dtype(mesh.expert_dtype);
  for (const PoolConfig& from : mesh.pools) {
    mesh::v1::Pool& pool = *config.add_pools();
    pool.set_name(from.name);
    pool.set_target(from.target.ToString());
    pool.set_device(from.device);
    if (from.is_managed) {
      pool.mutable_managed()->set_memory_budget_bytes(from.memory_budget_bytes);
    } else {
      pool.mutable_fixed()->set_slots(FormatSlotList(from.slots, model));
    }
    pool.set_tls_server_name(from.tls_server_name);
    pool.set_weight(from.weight);
    pool.set_min_replicas(from.min_replicas);
    if (from.max_replicas > 0) pool.set_max_replicas(from.max_replicas);
  }
  std::string text;
  // Always OK: it fails for well-known types out of range alone.
  (void)google::protobuf::util::MessageToJsonString(config, &text);
  return text;
}

absl::StatusOr<MeshConfig> MeshOfAddresses(
    const std::vector<std::string>& addresses) {
  if (addresses.empty()) {
    return absl::InvalidArgumentError("no expert service is given");
  }
  PoolConfig pool;
  pool.name = kStaticPoolName;
  ASSIGN_OR_RETURN(pool.target, ParsePoolTarget(absl::StrJoin(addresses, ",")));
  // Each may hold what no other does.
  pool.min_replicas = static_cast<uint32_t>(addresses.size());
  MeshConfig mesh;
  mesh.pools.push_back(std::move(pool));
  return mesh;
}

}  // namespace expertmesh
