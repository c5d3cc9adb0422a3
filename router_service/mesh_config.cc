#include "router_service/mesh_config.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "expertmesh/mesh/v1/mesh.pb.h"
#include "services/checkpoint/json_reader.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxNameLength = 63;
constexpr double kMaxWeight = 1000;
constexpr absl::string_view kDnsPrefix = "dns:///";

// --- Slots. ----------------------------------------------------------------

struct IdRange {
  int64_t first = 0;
  int64_t last = 0;
};

absl::StatusOr<int64_t> ParseId(absl::string_view what, absl::string_view text,
                                int64_t count) {
  int64_t id = 0;
  const bool digits = !text.empty() && std::all_of(text.begin(), text.end(),
                                                   absl::ascii_isdigit);
  if (!digits) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quoted(text), " is no ", what, " id"));
  }
  if (!absl::SimpleAtoi(text, &id) || id >= count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "there is no ", what, " ", text, " (the model has ", count, ")"));
  }
  return id;
}

// "7" or "0-3".
absl::StatusOr<IdRange> ParseExperts(absl::string_view text, int64_t count) {
  const size_t dash = text.find('-');
  IdRange ids;
  ASSIGN_OR_RETURN(ids.first, ParseId("expert", text.substr(0, dash), count));
  ids.last = ids.first;
  if (dash != absl::string_view::npos) {
    ASSIGN_OR_RETURN(ids.last, ParseId("expert", text.substr(dash + 1), count));
  }
  if (ids.last >= ids.first) return ids;
  return absl::InvalidArgumentError(
      absl::StrCat("the range ", text, " is reversed"));
}

// Marks the slots of one "EXPERTS" or "EXPERTS@LAYER" in `marked`
// [num_layers, num_experts].
absl::Status MarkSlots(absl::string_view text, const ModelConfig& model,
                       std::vector<bool>* marked) {
  const size_t at = text.find('@');
  const bool names_layer = at != absl::string_view::npos;
  ASSIGN_OR_RETURN(const IdRange experts,
                   ParseExperts(text.substr(0, at), model.num_experts));
  IdRange layers{0, model.num_layers - 1};
  if (names_layer) {
    ASSIGN_OR_RETURN(layers.first,
                     ParseId("layer", text.substr(at + 1), model.num_layers));
    layers.last = layers.first;
  }
  for (int64_t layer = layers.first; layer <= layers.last; ++layer) {
    if (!model.layers[layer].is_moe) {
      if (!names_layer) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", layer, " of the model has no experts"));
    }
    for (int64_t expert = experts.first; expert <= experts.last; ++expert) {
      auto mark = (*marked)[layer * model.num_experts + expert];
      if (mark) {
        return absl::InvalidArgumentError(absl::StrCat(
            "expert ", expert, " of layer ", layer, " is named twice"));
      }
      mark = true;
    }
  }
  return absl::OkStatus();
}

// --- Pools. ----------------------------------------------------------------

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

absl::StatusOr<PoolConfig> ReadPool(const mesh::v1::Pool& pool,
                                    const ModelConfig& model) {
  PoolConfig out;
  out.name = pool.name();
  auto target = ParsePoolTarget(pool.target());
  if (!target.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("target: ", target.status().message()));
  }
  out.target = *std::move(target);
  out.device = pool.device();
  RETURN_IF_ERROR(ReadContents(pool, model, &out));
  RETURN_IF_ERROR(ReadScaling(pool, &out));
  return out;
}

// What the pool's services are known by, to find pools that share one.
std::vector<std::string> TargetKeys(const PoolTarget& target) {
  if (!target.dns.has_value()) return target.addresses;
  return {absl::StrCat(kDnsPrefix, target.dns->ToString())};
}

// Adds the next pool; `claimed` holds the pool of each target so far.
absl::Status AddPool(const mesh::v1::Pool& pool, const ModelConfig& model,
                     std::map<std::string, std::string>* claimed,
                     MeshConfig* mesh) {
  for (const PoolConfig& other : mesh->pools) {
    if (other.name == pool.name()) {
      return absl::InvalidArgumentError(
          "name: another pool before it has the same");
    }
  }
  ASSIGN_OR_RETURN(PoolConfig read, ReadPool(pool, model));
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

absl::StatusOr<std::vector<ExpertSlot>> ParseSlots(absl::string_view text,
                                                   const ModelConfig& model) {
  std::vector<bool> marked(model.num_layers * model.num_experts);
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const absl::Status status =
        MarkSlots(absl::StripAsciiWhitespace(part), model, &marked);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          Quoted(text), ": ", status.message(),
          "; expected EXPERTS or EXPERTS@LAYER such as 0-15,17@3"));
    }
  }
  std::vector<ExpertSlot> slots;
  for (size_t i = 0; i < marked.size(); ++i) {
    if (!marked[i]) continue;
    slots.push_back({static_cast<uint32_t>(i / model.num_experts),
                     static_cast<uint32_t>(i % model.num_experts)});
  }
  return slots;
}

absl::StatusOr<PoolTarget> ParsePoolTarget(absl::string_view text) {
  PoolTarget target;
  const bool is_dns = absl::StartsWith(text, kDnsPrefix);
  if (!is_dns && text.find("://") != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quoted(text),
                     " is neither dns:///NAME:PORT nor "
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
                                        const ModelConfig& model) {
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
    if (const absl::Status status = AddPool(pool, model, &claimed, &mesh);
        !status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": pool ", pool.name(), ": ", status.message()));
    }
  }
  return mesh;
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

}  // namespace expertmesh::router
