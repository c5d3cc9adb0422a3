#pragma once

// expertmesh.admin.v1.AdminService: the mesh as this router sees it, and what
// operators may change of it.

#include <grpcpp/grpcpp.h>

#include <optional>

#include "expertmesh/admin/v1/admin.grpc.pb.h"
#include "router_service/api/capacity_settings.h"
#include "router_service/api/placement_watch.h"
#include "router_service/control/controller.h"
#include "router_service/control/scale_monitor.h"
#include "router_service/engine/engine.h"
#include "router_service/transport/endpoint_set.h"
#include "services/core/clock.h"

namespace expertmesh::router {

// Every method takes bytes and parses them itself; see api/raw_message.h.
// clang-format off: one method a line.
using AdminRpcs = admin::v1::AdminService;
using RawAdminService = AdminRpcs::WithRawCallbackMethod_ListEndpoints<
    AdminRpcs::WithRawCallbackMethod_GetExpertLoad<
        AdminRpcs::WithRawCallbackMethod_GetScaleRecommendation<
            AdminRpcs::WithRawCallbackMethod_SetCapacity<
                AdminRpcs::WithRawCallbackMethod_GetPlacement<
                    AdminRpcs::WithRawCallbackMethod_WatchPlacement<
                        AdminRpcs::WithRawCallbackMethod_ProposePlacement<
                            AdminRpcs::WithRawCallbackMethod_ApplyPlacement<
                                AdminRpcs::WithRawCallbackMethod_Rebalance<
                                    AdminRpcs::
                                        WithRawCallbackMethod_DrainEndpoint<
                                            AdminRpcs::Service>>>>>>>>>>;
// clang-format on

// Thread-safe. Destroyed after the server's end.
class AdminServiceImpl final : public RawAdminService {
 public:
  // All must outlive this.
  struct Parts {
    const ModelConfig* model = nullptr;
    const Engine* engine = nullptr;
    const EndpointSet* endpoints = nullptr;
    CapacitySettings* capacity = nullptr;
    Controller* controller = nullptr;  // null: another router's task
    const ScaleMonitor* scales = nullptr;
    const Clock* clock = nullptr;
  };
  explicit AdminServiceImpl(const Parts& parts);

  // Ends WatchPlacement streams, which have no end of their own.
  void EndWatches();

  grpc::ServerUnaryReactor* ListEndpoints(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetExpertLoad(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetScaleRecommendation(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* SetCapacity(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetPlacement(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* WatchPlacement(
      grpc::CallbackServerContext* context,
      const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* ProposePlacement(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ApplyPlacement(grpc::CallbackServerContext* context,
                                           const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Rebalance(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* request,
                                      grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* DrainEndpoint(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;

 private:
  void FillEndpoints(admin::v1::ListEndpointsResponse* response) const;
  void FillLoad(admin::v1::GetExpertLoadResponse* response) const;
  void FillMeshLoad(admin::v1::GetExpertLoadResponse* response) const;
  // Parses the request of a call that only the controller can answer.
  absl::Status ParseForControl(const grpc::ByteBuffer& bytes,
                               google::protobuf::Message* request) const;

  const Parts parts_;
  const ModelConfig& config_;
  std::optional<PlacementWatchers> watchers_;
};

}  // namespace expertmesh::router
