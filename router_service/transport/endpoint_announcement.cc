#include "router_service/transport/endpoint_announcement.h"

#include <algorithm>
#include <array>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertmesh::router {
namespace {

constexpr uint32_t kWireVersion = 1;

template <typename Value>
Refusal Mismatch(RefusalReason reason, absl::string_view what,
                 const Value& theirs, const Value& ours) {
  return {reason, absl::StrCat("announces ", what, " ", theirs,
                               ", this router's is ", ours)};
}

std::optional<Refusal> CheckHosted(const ModelIdentity& model,
                                   const expert::v1::EndpointState& state) {
  std::set<std::pair<uint32_t, uint32_t>> seen;
  for (const auto& hosted : state.hosted()) {
    for (const uint32_t expert_id : hosted.expert_ids()) {
      const auto refuse = [&](absl::string_view why) {
        return Refusal{RefusalReason::kHostedExperts,
                       absl::StrCat("announces expert ", expert_id,
                                    " of layer ", hosted.layer(), why)};
      };
      if (hosted.layer() >= model.num_layers ||
          expert_id >= model.num_experts) {
        return refuse(", which the model does not have");
      }
      if (!seen.insert({hosted.layer(), expert_id}).second) {
        return refuse(" twice");
      }
    }
  }
  return std::nullopt;
}

}  // namespace

absl::string_view EndpointStateName(EndpointState state) {
  constexpr std::array<absl::string_view, kNumEndpointStates> kNames = {
      "connecting", "ready", "draining", "refused", "leaving"};
  return kNames[static_cast<size_t>(state)];
}

absl::string_view RefusalReasonName(RefusalReason reason) {
  constexpr std::array<absl::string_view, kNumRefusalReasons> kNames = {
      "wire_version",   "model",     "checkpoint", "expert_dtype",
      "hosted_experts", "duplicate", "wire_dtype"};
  return kNames[static_cast<size_t>(reason)];
}

std::optional<Refusal> CheckAnnouncement(
    const ModelIdentity& model, const expert::v1::EndpointState& state) {
  // First: what another version says may mean something else.
  if (state.wire_version() != kWireVersion) {
    return Mismatch(RefusalReason::kWireVersion, "wire_version",
                    state.wire_version(), kWireVersion);
  }
  if (state.model_type() != model.model_type) {
    return Mismatch(RefusalReason::kModel, "model_type", state.model_type(),
                    model.model_type);
  }
  if (state.hidden_size() != model.hidden_size) {
    return Mismatch(RefusalReason::kModel, "hidden_size", state.hidden_size(),
                    model.hidden_size);
  }
  if (state.num_layers() != model.num_layers) {
    return Mismatch(RefusalReason::kModel, "num_layers", state.num_layers(),
                    model.num_layers);
  }
  if (state.num_experts() != model.num_experts) {
    return Mismatch(RefusalReason::kModel, "num_experts", state.num_experts(),
                    model.num_experts);
  }
  if (!model.checkpoint_fingerprint.empty() &&
      state.checkpoint_fingerprint() != model.checkpoint_fingerprint) {
    return Mismatch(RefusalReason::kCheckpoint, "checkpoint_fingerprint",
                    state.checkpoint_fingerprint(),
                    model.checkpoint_fingerprint);
  }
  if (!model.expert_dtype.empty() &&
      state.expert_dtype() != model.expert_dtype) {
    return Refusal{
        RefusalReason::kExpertDType,
        absl::StrCat("holds weights as ", state.expert_dtype(),
                     ", the services in use as ", model.expert_dtype,
                     "; start it with the same --expert-dtype as those")};
  }
  if (model.int8_rows && !state.int8_rows()) {
    return Refusal{RefusalReason::kWireDType,
                   "does not know rows of int8; update it, or start the "
                   "routers with another --wire-dtype"};
  }
  return CheckHosted(model, state);
}

void ReadAnnouncement(const expert::v1::EndpointState& state,
                      EndpointInfo* info) {
  info->hosted.clear();
  for (const auto& hosted : state.hosted()) {
    for (const uint32_t expert_id : hosted.expert_ids()) {
      info->hosted.push_back({hosted.layer(), expert_id});
    }
  }
  std::sort(info->hosted.begin(), info->hosted.end(),
            [](const ExpertSlot& a, const ExpertSlot& b) {
              return std::tie(a.layer, a.expert_id) <
                     std::tie(b.layer, b.expert_id);
            });
  info->numerics_id = state.numerics_id();
  info->expert_dtype = state.expert_dtype();
  info->device = state.device();
  info->version = state.version();
  info->memory_bytes = state.memory_bytes();
  info->memory_budget_bytes = state.memory_budget_bytes();
  info->placement_epoch = state.placement_epoch();
  info->instance_id = state.instance_id();
  info->adds_rows = state.adds_rows();
  info->queue_rows = state.queue_rows();
  info->credit_rows = state.credit_rows();
  info->served_rows = 0;
  for (const auto& slot : state.load()) info->served_rows += slot.rows();
  info->busy_us = state.busy_us();
}

EndpointLoad ReadLoad(const expert::v1::EndpointState& state) {
  EndpointLoad load;
  load.busy_us = state.busy_us();
  load.expert_runs = state.expert_runs();
  load.rows.reserve(state.load_size());
  for (const expert::v1::SlotLoad& slot : state.load()) {
    load.rows.push_back({{slot.layer(), slot.expert_id()}, slot.rows()});
  }
  return load;
}

}  // namespace expertmesh::router
