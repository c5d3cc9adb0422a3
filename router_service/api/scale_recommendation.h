#pragma once

#include <vector>

#include "expertmesh/admin/v1/admin.pb.h"
#include "router_service/control/scale_monitor.h"

namespace expertmesh::router {

// The answer of AdminService.GetScaleRecommendation.
void FillScaleRecommendation(
    const std::vector<PoolScale>& pools,
    admin::v1::GetScaleRecommendationResponse* response);

}  // namespace expertmesh::router
