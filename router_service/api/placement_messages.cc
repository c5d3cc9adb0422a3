#include "router_service/api/placement_messages.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace expertmesh::router {
namespace {

void FillHost(const PlacementHost& host, std::vector<SlotId> hosted,
              admin::v1::PlacementHost* out) {
  out->set_address(host.id);
  out->set_pool(host.pool);
  out->set_managed(host.managed);
  out->set_speed(host.speed);
  out->set_numerics_id(host.numerics_id);
  out->set_stands_by(host.stands_by);
  out->set_memory_budget_bytes(static_cast<uint64_t>(host.budget_bytes));
  std::sort(hosted.begin(), hosted.end());
  FillHosted(hosted, out->mutable_hosted());
}

}  // namespace

void FillHosted(
    absl::Span<const SlotId> slots,
    google::protobuf::RepeatedPtrField<admin::v1::HostedExperts>* out) {
  admin::v1::HostedExperts* layer = nullptr;
  for (const SlotId slot : slots) {
    const auto number = static_cast<uint32_t>(slot.layer);
    if (layer == nullptr || layer->layer() != number) {
      layer = out->Add();
      layer->set_layer(number);
    }
    layer->add_expert_ids(static_cast<uint32_t>(slot.expert));
  }
}

void FillPlacement(const MeshPlacement& placement, admin::v1::Placement* out) {
  out->set_version(placement.version);
  out->set_epoch(placement.epoch);
  for (const PlacementHost& host : placement.hosts) {
    FillHost(host, host.hosted, out->add_hosts());
  }
}

void FillProposal(const PlacementProposal& proposal,
                  admin::v1::PlacementProposal* out) {
  const PlacementPlan& plan = proposal.plan;
  const std::vector<PlacementHost>& hosts = proposal.from.hosts;
  out->set_version(proposal.from.version);
  for (size_t h = 0; h < hosts.size(); ++h) {
    FillHost(hosts[h], plan.hosted[h], out->add_hosts());
  }
  out->set_balancedness_before(1 / plan.before.slowest_over_mean);
  out->set_balancedness_after(1 / plan.after.slowest_over_mean);
  out->set_bytes_to_load(static_cast<uint64_t>(plan.bytes_to_load));
  for (const PlacementMove& move : plan.moves) {
    admin::v1::PlacementMove* message = out->add_moves();
    message->set_kind(move.kind == PlacementMove::Kind::kLoad
                          ? admin::v1::PlacementMove::KIND_LOAD
                          : admin::v1::PlacementMove::KIND_UNLOAD);
    message->set_address(hosts[move.host].id);
    message->set_layer(static_cast<uint32_t>(move.slot.layer));
    message->set_expert_id(static_cast<uint32_t>(move.slot.expert));
    message->set_bytes(static_cast<uint64_t>(move.bytes));
  }
}

void FillApplied(const AppliedPlacement& applied,
                 admin::v1::ApplyPlacementResponse* out) {
  out->set_version(applied.version);
  out->set_moves(static_cast<uint32_t>(applied.made.moves));
  out->set_bytes_loaded(static_cast<uint64_t>(applied.made.bytes_loaded));
}

absl::StatusOr<PlacementTarget> ReadTarget(
    const admin::v1::PlacementTarget& message) {
  constexpr uint32_t kMax = std::numeric_limits<int32_t>::max();
  PlacementTarget target;
  for (const admin::v1::PlacementHost& host : message.hosts()) {
    const auto [entry, is_new] = target.try_emplace(host.address());
    if (!is_new) {
      return absl::InvalidArgumentError(
          absl::StrCat("hosts names ", host.address(), " twice"));
    }
    for (const admin::v1::HostedExperts& hosted : host.hosted()) {
      for (const uint32_t expert : hosted.expert_ids()) {
        if (hosted.layer() > kMax || expert > kMax) {
          return absl::InvalidArgumentError(absl::StrCat(
              "there is no expert ", expert, " of layer ", hosted.layer()));
        }
        entry->second.push_back({static_cast<int32_t>(hosted.layer()),
                                 static_cast<int32_t>(expert)});
      }
    }
  }
  return target;
}

}  // namespace expertmesh::router
