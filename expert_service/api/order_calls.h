#pragma once

// The calls that carry orders: their reactors.

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <functional>

#include "expert_service/api/order_thread.h"
#include "expert_service/weights/expert_contents.h"
#include "expertmesh/expert/v1/expert.pb.h"

namespace expertmesh::expert {

// What orders work on; all outlives the calls.
struct OrderParts {
  OrderThread* thread = nullptr;
  ExpertContents* contents = nullptr;
  const LiveWeights* weights = nullptr;
  std::function<void()> on_done;  // after each order, from the order thread
};

// Both return the call's reactor, which the order thread finishes. The request
// may go when they return.
grpc::ServerWriteReactor<v1::LoadExpertsProgress>* StartLoadExperts(
    const OrderParts& parts, const v1::LoadExpertsRequest& request);
grpc::ServerUnaryReactor* StartUnloadExperts(
    const OrderParts& parts, grpc::CallbackServerContext* context,
    const v1::UnloadExpertsRequest& request,
    v1::UnloadExpertsResponse* response);

}  // namespace expertmesh::expert
