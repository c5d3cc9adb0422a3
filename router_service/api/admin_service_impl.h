#pragma once

// expertmesh.admin.v1.AdminService: the mesh as this router sees it.

#include <grpcpp/grpcpp.h>

#include "expertmesh/admin/v1/admin.grpc.pb.h"
#include "router_service/control/scale_monitor.h"
#include "router_service/engine/engine.h"
#include "router_service/transport/endpoint_set.h"
#include "services/core/clock.h"

namespace expertmesh::router {

// Thread-safe. Pointers must outlive this.
class AdminServiceImpl final
    : public admin::v1::AdminService::WithRawCallbackMethod_ListEndpoints<
          admin::v1::AdminService::WithRawCallbackMethod_GetExpertLoad<
              admin::v1::AdminService::
                  WithRawCallbackMethod_GetScaleRecommendation<
                      admin::v1::AdminService::Service>>> {
 public:
  AdminServiceImpl(const ModelConfig& config, const Engine* engine,
                   const EndpointSet* endpoints, const ScaleMonitor* scales,
                   const Clock* clock)
      : config_(config),
        engine_(engine),
        endpoints_(endpoints),
        scales_(scales),
        clock_(clock) {}

  grpc::ServerUnaryReactor* ListEndpoints(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetExpertLoad(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetScaleRecommendation(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override;

 private:
  void FillEndpoints(admin::v1::ListEndpointsResponse* response) const;
  void FillLoad(admin::v1::GetExpertLoadResponse* response) const;

  const ModelConfig& config_;
  const Engine* const engine_;
  const EndpointSet* const endpoints_;
  const ScaleMonitor* const scales_;
  const Clock* const clock_;
};

}  // namespace expertmesh::router
