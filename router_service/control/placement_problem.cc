#include "router_service/control/placement_problem.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

std::string Name(SlotId slot) {
  return absl::StrCat("expert ", slot.expert, " of layer ", slot.layer);
}

bool IsSlot(const PlacementProblem& problem, SlotId slot) {
  return slot.layer >= 0 && slot.layer < problem.num_layers &&
         slot.expert >= 0 && slot.expert < problem.num_experts &&
         problem.slot_bytes[slot.layer] > 0;
}

bool IsPositive(double value) { return std::isfinite(value) && value > 0; }

// `slots` are sorted.
absl::Status CheckSlots(const PlacementProblem& problem,
                        const std::string& host,
                        const std::vector<SlotId>& slots) {
  for (const SlotId slot : slots) {
    if (!IsSlot(problem, slot)) {
      return absl::InvalidArgumentError(
          absl::StrCat("host ", host, ": no such slot: ", Name(slot)));
    }
  }
  const auto twice = std::adjacent_find(slots.begin(), slots.end());
  if (twice == slots.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("host ", host, " names ", Name(*twice), " twice"));
}

absl::Status CheckShapes(const PlacementProblem& problem) {
  if (problem.num_layers <= 0 || problem.num_experts <= 0 ||
      problem.num_layers >
          std::numeric_limits<int32_t>::max() / problem.num_experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("a model of ", problem.num_layers, " layers of ",
                     problem.num_experts, " experts"));
  }
  if (static_cast<int64_t>(problem.rows.size()) != problem.num_slots()) {
    return absl::InvalidArgumentError(
        absl::StrCat("demand for ", problem.rows.size(), " slots, not ",
                     problem.num_slots()));
  }
  if (static_cast<int64_t>(problem.slot_bytes.size()) != problem.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("bytes of ", problem.slot_bytes.size(), " layers, not ",
                     problem.num_layers));
  }
  if (std::all_of(problem.slot_bytes.begin(), problem.slot_bytes.end(),
                  [](int64_t bytes) { return bytes == 0; })) {
    return absl::InvalidArgumentError("no layer has experts");
  }
  if (problem.hosts.empty()) return absl::InvalidArgumentError("no hosts");
  return absl::OkStatus();
}

absl::Status CheckContents(const PlacementProblem& problem, size_t host,
                           const std::vector<SlotId>& slots) {
  const PlacementHost& properties = problem.hosts[host];
  if (!properties.managed) {
    std::vector<SlotId> fixed = properties.hosted;
    std::sort(fixed.begin(), fixed.end());
    if (slots == fixed) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("the contents of host ", properties.id, " are fixed"));
  }
  int64_t bytes = 0;
  for (const SlotId slot : slots) bytes += problem.slot_bytes[slot.layer];
  if (bytes <= properties.budget_bytes) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("host ", properties.id, " would hold ", bytes,
                   " bytes, more than its ", properties.budget_bytes));
}

}  // namespace

HostedSlots CurrentContents(const PlacementProblem& problem) {
  HostedSlots hosted;
  hosted.reserve(problem.hosts.size());
  for (const PlacementHost& host : problem.hosts) {
    hosted.push_back(host.hosted);
    std::sort(hosted.back().begin(), hosted.back().end());
  }
  return hosted;
}

absl::Status ValidateProblem(const PlacementProblem& problem) {
  RETURN_IF_ERROR(CheckShapes(problem));
  for (const double rows : problem.rows) {
    if (!std::isfinite(rows) || rows < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("demand of ", rows, " rows"));
    }
  }
  for (const int64_t bytes : problem.slot_bytes) {
    if (bytes < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("slots of ", bytes, " bytes"));
    }
  }
  for (const PlacementHost& host : problem.hosts) {
    if (!IsPositive(host.speed) || !IsPositive(host.pool_weight) ||
        !IsPositive(host.rate()) || host.budget_bytes < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "host ", host.id, ": speed ", host.speed, ", weight ",
          host.pool_weight, ", budget ", host.budget_bytes, " bytes"));
    }
  }
  const HostedSlots hosted = CurrentContents(problem);
  for (size_t h = 0; h < hosted.size(); ++h) {
    RETURN_IF_ERROR(CheckSlots(problem, problem.hosts[h].id, hosted[h]));
  }
  return absl::OkStatus();
}

absl::Status CheckPlacement(const PlacementProblem& problem,
                            const HostedSlots& hosted) {
  if (hosted.size() != problem.hosts.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "contents of ", hosted.size(), " hosts, not ", problem.hosts.size()));
  }
  std::vector<uint8_t> covered(problem.num_slots());
  for (size_t h = 0; h < hosted.size(); ++h) {
    std::vector<SlotId> slots = hosted[h];
    std::sort(slots.begin(), slots.end());
    RETURN_IF_ERROR(CheckSlots(problem, problem.hosts[h].id, slots));
    RETURN_IF_ERROR(CheckContents(problem, h, slots));
    for (const SlotId slot : slots) covered[problem.IndexOf(slot)] = 1;
  }
  for (int64_t slot = 0; slot < problem.num_slots(); ++slot) {
    if (problem.BytesOf(slot) > 0 && !covered[slot]) {
      return absl::FailedPreconditionError(
          absl::StrCat("no host holds ", Name(problem.SlotAt(slot))));
    }
  }
  return absl::OkStatus();
}

}  // namespace expertmesh::router
