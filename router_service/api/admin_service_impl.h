#pragma once

// expertmesh.admin.v1.AdminService: the mesh as this router sees it, and what
// operators may change of it.

#include <grpcpp/grpcpp.h>

#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
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
  // Errors: FAILED_PRECONDITION where another router is the controller.
  absl::Status CheckControls() const;
  // Hands a call to the controller: `ask` sees to it that the reactor is
  // finished later, or returns why not.
  template <typename Request>
  grpc::ServerUnaryReactor* AskController(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes,
      absl::FunctionRef<absl::Status(const Request&, grpc::ServerUnaryReactor*)>
          ask);

  const Parts parts_;
  const ModelConfig& config_;
  std::optional<PlacementWatchers> watchers_;
};

}  // namespace expertmesh::router
