#include "router_service/api/admin_service_impl.h"

#include "router_service/api/raw_message.h"
#include "router_service/api/scale_recommendation.h"
#include "router_service/dispatch/endpoint_placement.h"

namespace expertmesh::router {
namespace {

void FillEndpoint(const EndpointInfo& info, admin::v1::Endpoint* out) {
  out->set_address(info.address);
  out->set_state(std::string(EndpointStateName(info.state)));
  out->set_reason(info.reason);
  out->set_numerics_id(info.numerics_id);
  out->set_expert_dtype(info.expert_dtype);
  out->set_device(info.device);
  out->set_memory_bytes(info.memory_bytes);
  out->set_inflight_rows(static_cast<uint32_t>(info.inflight_rows));
  out->set_queue_rows(info.queue_rows);
  out->set_version(info.version);
  out->set_pool(info.pool);
  out->set_credit_rows(info.credit_rows);
  out->set_memory_budget_bytes(info.memory_budget_bytes);
  out->set_placement_epoch(info.placement_epoch);
  admin::v1::HostedExperts* layer = nullptr;
  for (const ExpertSlot& slot : info.hosted) {
    if (layer == nullptr || layer->layer() != slot.layer) {
      layer = out->add_hosted();
      layer->set_layer(slot.layer);
    }
    layer->add_expert_ids(slot.expert_id);
  }
}

}  // namespace

grpc::ServerUnaryReactor* AdminServiceImpl::ListEndpoints(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  using admin::v1::ListEndpointsResponse;
  return AnswerUnary<admin::v1::ListEndpointsRequest, ListEndpointsResponse>(
      context, *request, response,
      [this](const auto&, ListEndpointsResponse* out) { FillEndpoints(out); });
}

grpc::ServerUnaryReactor* AdminServiceImpl::GetExpertLoad(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  using admin::v1::GetExpertLoadResponse;
  return AnswerUnary<admin::v1::GetExpertLoadRequest, GetExpertLoadResponse>(
      context, *request, response,
      [this](const auto&, GetExpertLoadResponse* out) { FillLoad(out); });
}

grpc::ServerUnaryReactor* AdminServiceImpl::GetScaleRecommendation(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  using admin::v1::GetScaleRecommendationResponse;
  return AnswerUnary<admin::v1::GetScaleRecommendationRequest,
                     GetScaleRecommendationResponse>(
      context, *request, response,
      [this](const auto&, GetScaleRecommendationResponse* out) {
        FillScaleRecommendation(scales_->Pools(), out);
      });
}

void AdminServiceImpl::FillEndpoints(
    admin::v1::ListEndpointsResponse* response) const {
  const std::vector<EndpointInfo> endpoints = endpoints_->Snapshot();
  for (const EndpointInfo& info : endpoints) {
    FillEndpoint(info, response->add_endpoints());
  }
  response->set_uncovered_slots(static_cast<uint32_t>(
      PlaceOnEndpoints(config_, endpoints).uncovered_slots));
}

void AdminServiceImpl::FillLoad(
    admin::v1::GetExpertLoadResponse* response) const {
  const absl::Duration now = clock_->Now();
  const std::vector<uint64_t> rows = engine_->expert_load().Window(now);
  response->set_window_seconds(ExpertLoad::kWindowSeconds);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    if (!config_.layers[layer].is_moe) continue;
    admin::v1::LayerLoad* out = response->add_layers();
    out->set_layer(static_cast<uint32_t>(layer));
    const uint64_t* first = &rows[layer * config_.num_experts];
    out->mutable_rows()->Add(first, first + config_.num_experts);
  }
  const Engine::Load load = engine_->load();
  response->set_requests_running(static_cast<uint32_t>(load.running));
  response->set_requests_waiting(static_cast<uint32_t>(load.waiting));
  response->set_kv_cache_usage_ratio(load.kv_cache_usage_ratio);
  const double seconds =
      absl::ToDoubleSeconds(engine_->expert_load().Covered(now));
  if (seconds > 0) {
    response->set_tokens_per_second(
        static_cast<double>(engine_->expert_load().WindowTokens(now)) /
        seconds);
  }
  const auto count = [&load](RowOutcome outcome) {
    return load.rows[static_cast<int>(outcome)];
  };
  response->set_rows_primary(count(RowOutcome::kPrimary));
  response->set_rows_replica(count(RowOutcome::kReplica));
  response->set_rows_waited(count(RowOutcome::kWaited));
  response->set_rows_rerouted(count(RowOutcome::kRerouted));
  response->set_rows_dropped(count(RowOutcome::kDropped));
}

}  // namespace expertmesh::router
