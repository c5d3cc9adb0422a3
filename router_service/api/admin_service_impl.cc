#include "router_service/api/admin_service_impl.h"

#include <cmath>
#include <utility>
#include <vector>

#include "router_service/api/placement_messages.h"
#include "router_service/api/raw_message.h"
#include "router_service/api/scale_recommendation.h"
#include "router_service/dispatch/endpoint_placement.h"
#include "services/core/status_macros.h"

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
  std::vector<SlotId> hosted;
  for (const ExpertSlot& slot : info.hosted) {
    hosted.push_back({static_cast<int32_t>(slot.layer),
                      static_cast<int32_t>(slot.expert_id)});
  }
  FillHosted(hosted, out->mutable_hosted());
}

// What `fill` makes of a result, or the result's error.
template <typename Message, typename Result>
absl::StatusOr<Message> Convert(const absl::StatusOr<Result>& result,
                                void (*fill)(const Result&, Message*)) {
  RETURN_IF_ERROR(result.status());
  Message message;
  fill(*result, &message);
  return message;
}

void FillRebalanced(const RebalancedPlacement& rebalanced,
                    admin::v1::RebalanceResponse* out) {
  FillProposal(rebalanced.proposal, out->mutable_proposal());
  FillApplied(rebalanced.applied, out->mutable_applied());
}

}  // namespace

AdminServiceImpl::AdminServiceImpl(const Parts& parts)
    : parts_(parts), config_(*parts.model) {
  if (parts_.controller != nullptr) watchers_.emplace(parts_.controller);
}

void AdminServiceImpl::EndWatches() {
  if (watchers_.has_value()) watchers_->EndAll();
}

grpc::ServerUnaryReactor* AdminServiceImpl::ListEndpoints(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  using admin::v1::ListEndpointsResponse;
  return AnswerUnary<admin::v1::ListEndpointsRequest, ListEndpointsResponse>(
      context, *request, response,
      [this](const auto&, ListEndpointsResponse* out) {
        FillEndpoints(out);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* AdminServiceImpl::GetExpertLoad(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  using admin::v1::GetExpertLoadResponse;
  return AnswerUnary<admin::v1::GetExpertLoadRequest, GetExpertLoadResponse>(
      context, *request, response,
      [this](const auto&, GetExpertLoadResponse* out) {
        FillLoad(out);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* AdminServiceImpl::GetScaleRecommendation(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  using admin::v1::GetScaleRecommendationResponse;
  return AnswerUnary<admin::v1::GetScaleRecommendationRequest,
                     GetScaleRecommendationResponse>(
      context, *request, response,
      [this](const auto&, GetScaleRecommendationResponse* out) {
        FillScaleRecommendation(parts_.scales->Pools(), out);
        return absl::OkStatus();
      });
}

void AdminServiceImpl::FillEndpoints(
    admin::v1::ListEndpointsResponse* response) const {
  const std::vector<EndpointInfo> endpoints = parts_.endpoints->Snapshot();
  for (const EndpointInfo& info : endpoints) {
    FillEndpoint(info, response->add_endpoints());
  }
  response->set_uncovered_slots(static_cast<uint32_t>(
      PlaceOnEndpoints(config_, endpoints, "").uncovered_slots));
}

void AdminServiceImpl::FillLoad(
    admin::v1::GetExpertLoadResponse* response) const {
  const absl::Duration now = parts_.clock->Now();
  const std::vector<uint64_t> rows = parts_.engine->expert_load().Window(now);
  response->set_window_seconds(ExpertLoad::kWindowSeconds);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    if (!config_.layers[layer].is_moe) continue;
    admin::v1::LayerLoad* out = response->add_layers();
    out->set_layer(static_cast<uint32_t>(layer));
    const uint64_t* first = &rows[layer * config_.num_experts];
    out->mutable_rows()->Add(first, first + config_.num_experts);
  }
  const Engine::Load load = parts_.engine->load();
  response->set_requests_running(static_cast<uint32_t>(load.running));
  response->set_requests_waiting(static_cast<uint32_t>(load.waiting));
  response->set_kv_cache_usage_ratio(load.kv_cache_usage_ratio);
  const double seconds =
      absl::ToDoubleSeconds(parts_.engine->expert_load().Covered(now));
  if (seconds > 0) {
    response->set_tokens_per_second(
        static_cast<double>(parts_.engine->expert_load().WindowTokens(now)) /
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
  if (parts_.controller != nullptr) FillMeshLoad(response);
}

void AdminServiceImpl::FillMeshLoad(
    admin::v1::GetExpertLoadResponse* response) const {
  response->set_mesh_window_seconds(
      absl::ToDoubleSeconds(parts_.controller->load_window()));
  const std::vector<double> rows = parts_.controller->WindowRows();
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    if (!config_.layers[layer].is_moe) continue;
    admin::v1::LayerLoad* out = response->add_mesh_layers();
    out->set_layer(static_cast<uint32_t>(layer));
    for (int64_t expert = 0; expert < config_.num_experts; ++expert) {
      out->add_rows(static_cast<uint64_t>(
          std::llround(rows[layer * config_.num_experts + expert])));
    }
  }
}

// --- Capacity. -------------------------------------------------------------

grpc::ServerUnaryReactor* AdminServiceImpl::SetCapacity(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  admin::v1::SetCapacityRequest request;
  const absl::Status parsed = ParseMessage(*bytes, &request);
  if (parsed.ok()) {
    FinishUnary(parts_.capacity->Set(request), response, reactor);
  } else {
    reactor->Finish(ToGrpcStatus(parsed));
  }
  return reactor;
}

// --- Placement. ------------------------------------------------------------

absl::Status AdminServiceImpl::CheckControls() const {
  if (parts_.controller != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "this router does not control placement; ask the one that runs with "
      "--control");
}

template <typename Request>
grpc::ServerUnaryReactor* AdminServiceImpl::AskController(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes,
    absl::FunctionRef<absl::Status(const Request&, grpc::ServerUnaryReactor*)>
        ask) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  Request request;
  absl::Status status = ParseMessage(bytes, &request);
  status.Update(CheckControls());
  if (status.ok()) status = ask(request, reactor);
  if (!status.ok()) reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

grpc::ServerUnaryReactor* AdminServiceImpl::GetPlacement(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  using admin::v1::Placement;
  return AnswerUnary<admin::v1::GetPlacementRequest, Placement>(
      context, *bytes, response, [this](const auto&, Placement* out) {
        RETURN_IF_ERROR(CheckControls());
        FillPlacement(parts_.controller->placement(), out);
        return absl::OkStatus();
      });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* AdminServiceImpl::WatchPlacement(
    grpc::CallbackServerContext*, const grpc::ByteBuffer* bytes) {
  admin::v1::WatchPlacementRequest request;
  absl::Status status = ParseMessage(*bytes, &request);
  status.Update(CheckControls());
  return status.ok() ? watchers_->Add() : RefuseWatch(status);
}

grpc::ServerUnaryReactor* AdminServiceImpl::ProposePlacement(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  return AskController<admin::v1::ProposePlacementRequest>(
      context, *bytes, [&](const auto&, grpc::ServerUnaryReactor* reactor) {
        parts_.controller->Propose(
            [=](const absl::StatusOr<PlacementProposal>& proposal) {
              FinishUnary(Convert(proposal, FillProposal), response, reactor);
            });
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* AdminServiceImpl::ApplyPlacement(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  using Request = admin::v1::ApplyPlacementRequest;
  return AskController<Request>(
      context, *bytes,
      [&](const Request& request, grpc::ServerUnaryReactor* reactor) {
        const auto done = [=](const absl::StatusOr<AppliedPlacement>& applied) {
          FinishUnary(Convert(applied, FillApplied), response, reactor);
        };
        const uint64_t version = request.expected_version();
        if (request.target_case() == Request::kPlacement) {
          ASSIGN_OR_RETURN(PlacementTarget target,
                           ReadTarget(request.placement()));
          parts_.controller->Apply(version, std::move(target), done);
        } else if (request.as_proposed()) {
          parts_.controller->ApplyProposed(version, done);
        } else {
          return absl::InvalidArgumentError(
              "nothing to apply; set placement or as_proposed");
        }
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* AdminServiceImpl::Rebalance(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  return AskController<admin::v1::RebalanceRequest>(
      context, *bytes, [&](const auto&, grpc::ServerUnaryReactor* reactor) {
        parts_.controller->Rebalance(
            [=](const absl::StatusOr<RebalancedPlacement>& rebalanced) {
              FinishUnary(Convert(rebalanced, FillRebalanced), response,
                          reactor);
            });
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* AdminServiceImpl::DrainEndpoint(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  using Request = admin::v1::DrainEndpointRequest;
  return AskController<Request>(
      context, *bytes,
      [&](const Request& request, grpc::ServerUnaryReactor* reactor) {
        parts_.controller->Drain(
            request.address(), !request.undo(), [=](const absl::Status& done) {
              if (done.ok()) {
                *response =
                    SerializeMessage(admin::v1::DrainEndpointResponse());
              }
              reactor->Finish(ToGrpcStatus(done));
            });
        return absl::OkStatus();
      });
}

}  // namespace expertmesh::router
