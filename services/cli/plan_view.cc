#include "services/cli/plan_view.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/checkpoint/checkpoint.h"
#include "services/checkpoint/memory_plan.h"
#include "services/cli/load_view.h"
#include "services/core/dtype.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

struct PlanRow {
  WeightFormat format;  // of the experts' weights
  int64_t services;
  MemoryPlan plan;

  // Of the service that holds most.
  int64_t expert_service_bytes() const {
    int64_t bytes = 0;
    for (const ExpertServicePlan& service : plan.expert_services) {
      bytes = std::max(bytes, service.weight_bytes);
    }
    return bytes;
  }
};

absl::StatusOr<std::vector<PlanRow>> PlanRows(
    const Checkpoint& checkpoint, absl::Span<const int64_t> services) {
  std::vector<PlanRow> rows;
  for (const WeightFormat format : {WeightFormat::kInt4, WeightFormat::kInt8,
                                    WeightFormat::kBF16, WeightFormat::kF32}) {
    const bool is_f32 = format == WeightFormat::kF32 ||
                        checkpoint.config().dtype != DType::kBF16;
    for (const int64_t count : services) {
      if (count > checkpoint.config().num_experts) continue;
      const MemoryPlanOptions options = {
          .kv_format = is_f32 ? KvFormat::kF32 : KvFormat::kBF16,
          .expert_format = format,
          .num_expert_services = count};
      ASSIGN_OR_RETURN(MemoryPlan plan, PlanMemory(checkpoint, options));
      rows.push_back({format, count, std::move(plan)});
    }
  }
  if (rows.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--services: the model has ", checkpoint.config().num_experts,
        " experts; plan for at most as many services"));
  }
  return rows;
}

}  // namespace

absl::StatusOr<std::string> PlanText(const std::string& model,
                                     absl::Span<const int64_t> services) {
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(model));
  ASSIGN_OR_RETURN(const std::vector<PlanRow> rows,
                   PlanRows(*checkpoint, services));
  const ModelConfig& config = checkpoint->config();
  std::string text = absl::StrFormat(
      "%s: %s, %d experts in each of %d layers, checkpoint type %s\n"
      "Weights in memory (the programs themselves and their buffers come on "
      "top), by --expert-dtype;\nthe router's weights as they are stored, the "
      "KV cache as bf16 for bf16 checkpoints and f32 beside f32,\nand with "
      "--kv-dtype=int8:\n\n"
      "dtype  services  each expert service  all experts   router      "
      "KV per 1000 tokens  in int8\n",
      checkpoint->name(), config.model_type, config.num_experts,
      config.num_moe_layers(), DTypeName(config.dtype));
  const int64_t int8_kv_bytes = KvBytesPerToken(config, KvFormat::kInt8);
  for (const PlanRow& row : rows) {
    absl::StrAppendFormat(&text, "%-5s  %8d  %19s  %-12s  %-10s  %-18s  %s\n",
                          WeightFormatName(row.format), row.services,
                          BytesText(row.expert_service_bytes()),
                          BytesText(row.plan.expert_bytes * config.num_experts *
                                    config.num_moe_layers()),
                          BytesText(row.plan.router_weight_bytes),
                          BytesText(row.plan.kv_bytes_per_token * 1000),
                          BytesText(int8_kv_bytes * 1000));
  }
  return text;
}

absl::StatusOr<std::string> PlanJson(const std::string& model,
                                     absl::Span<const int64_t> services) {
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(model));
  ASSIGN_OR_RETURN(const std::vector<PlanRow> rows,
                   PlanRows(*checkpoint, services));
  nlohmann::ordered_json json;
  json["model"] = checkpoint->name();
  json["checkpoint_dtype"] = std::string(DTypeName(checkpoint->config().dtype));
  json["plans"] = nlohmann::ordered_json::array();
  for (const PlanRow& row : rows) {
    nlohmann::ordered_json plan;
    plan["dtype"] = std::string(WeightFormatName(row.format));
    plan["services"] = row.services;
    plan["router_weight_bytes"] = row.plan.router_weight_bytes;
    plan["kv_bytes_per_token"] = row.plan.kv_bytes_per_token;
    plan["kv_bytes_per_token_int8"] =
        KvBytesPerToken(checkpoint->config(), KvFormat::kInt8);
    plan["expert_bytes"] = row.plan.expert_bytes;
    plan["expert_services"] = nlohmann::ordered_json::array();
    for (const ExpertServicePlan& service : row.plan.expert_services) {
      plan["expert_services"].push_back(
          {{"experts",
            absl::StrCat(service.experts.first, "-", service.experts.end - 1)},
           {"weight_bytes", service.weight_bytes}});
    }
    json["plans"].push_back(std::move(plan));
  }
  return json.dump() + "\n";
}

}  // namespace expertmesh
