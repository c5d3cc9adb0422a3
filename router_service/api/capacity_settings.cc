#include "router_service/api/capacity_settings.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

// NaN is in no range.
absl::Status CheckRange(absl::string_view field, double value, double least,
                        double most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, " is ", value, "; it must be from ", least, " to ", most));
}

}  // namespace

absl::StatusOr<admin::v1::SetCapacityResponse> CapacitySettings::Set(
    const admin::v1::SetCapacityRequest& request) {
  MutexLock lock(&mutex_);
  CapacityOptions capacity = capacity_;
  OverflowPolicy policy = policy_;
  if (request.has_capacity_factor()) {
    capacity.capacity_factor = request.capacity_factor();
    RETURN_IF_ERROR(
        CheckRange("capacity_factor", capacity.capacity_factor, 0, 1e6));
  }
  if (request.has_min_capacity()) {
    capacity.min_capacity = request.min_capacity();
    RETURN_IF_ERROR(CheckRange("min_capacity", request.min_capacity(), 1, 1e9));
  }
  if (request.has_max_lost_gate_mass()) {
    capacity.max_lost_gate_mass = request.max_lost_gate_mass();
    RETURN_IF_ERROR(
        CheckRange("max_lost_gate_mass", capacity.max_lost_gate_mass, 0, 1));
  }
  if (request.has_overflow_policy()) {
    ASSIGN_OR_RETURN(policy, ParseOverflowPolicy(request.overflow_policy()));
  }
  capacity_ = capacity;
  policy_ = policy;
  engine_->SetCapacity(capacity);
  translator_->set_overflow_policy(policy);
  model_->SetCapacity(capacity.capacity_factor, OverflowPolicyName(policy));

  admin::v1::SetCapacityResponse response;
  response.set_capacity_factor(capacity.capacity_factor);
  response.set_min_capacity(static_cast<uint32_t>(capacity.min_capacity));
  response.set_max_lost_gate_mass(capacity.max_lost_gate_mass);
  response.set_overflow_policy(std::string(OverflowPolicyName(policy)));
  Log(LogLevel::kInfo, "capacity set",
      {{"capacity_factor", capacity.capacity_factor},
       {"min_capacity", capacity.min_capacity},
       {"max_lost_gate_mass", capacity.max_lost_gate_mass},
       {"overflow_policy", OverflowPolicyName(policy)}});
  return response;
}

}  // namespace expertmesh::router
