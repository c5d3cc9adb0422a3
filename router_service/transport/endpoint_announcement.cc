#include "router_service/transport/endpoint_announcement.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace expertmesh::router {
namespace {

template <typename Value>
absl::Status Mismatch(absl::string_view what, const Value& theirs,
                      const Value& ours) {
  return absl::FailedPreconditionError(absl::StrCat(
      "announces ", what, " ", theirs, ", this router's is ", ours));
}

}  // namespace

absl::Status CheckIdentity(const ModelIdentity& model,
                           const expert::v1::EndpointState& state) {
  if (state.model_type() != model.model_type) {
    return Mismatch("model_type", state.model_type(), model.model_type);
  }
  if (state.hidden_size() != model.hidden_size) {
    return Mismatch("hidden_size", state.hidden_size(), model.hidden_size);
  }
  if (state.num_layers() != model.num_layers) {
    return Mismatch("num_layers", state.num_layers(), model.num_layers);
  }
  if (state.num_experts() != model.num_experts) {
    return Mismatch("num_experts", state.num_experts(), model.num_experts);
  }
  if (!model.checkpoint_fingerprint.empty() &&
      state.checkpoint_fingerprint() != model.checkpoint_fingerprint) {
    return Mismatch("checkpoint_fingerprint", state.checkpoint_fingerprint(),
                    model.checkpoint_fingerprint);
  }
  for (const auto& hosted : state.hosted()) {
    for (const uint32_t expert_id : hosted.expert_ids()) {
      if (hosted.layer() >= model.num_layers ||
          expert_id >= model.num_experts) {
        return absl::FailedPreconditionError(
            absl::StrCat("announces expert ", expert_id, " of layer ",
                         hosted.layer(), ", which the model does not have"));
      }
    }
  }
  return absl::OkStatus();
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
  info->hosted.erase(std::unique(info->hosted.begin(), info->hosted.end()),
                     info->hosted.end());
  info->numerics_id = state.numerics_id();
  info->expert_dtype = state.expert_dtype();
  info->device = state.device();
  info->version = state.version();
  info->memory_bytes = state.memory_bytes();
  info->queue_rows = state.queue_rows();
  info->queue_capacity_rows = state.queue_capacity_rows();
}

}  // namespace expertmesh::router
