#include "router_service/api/scale_recommendation.h"

namespace expertmesh::router {

void FillScaleRecommendation(
    const std::vector<PoolScale>& pools,
    admin::v1::GetScaleRecommendationResponse* response) {
  for (const PoolScale& pool : pools) {
    const ScaleRecommendation& scale = pool.recommendation;
    admin::v1::ScaleRecommendation* out = response->add_pools();
    out->set_pool(pool.pool);
    out->set_demand_rows_per_second(scale.demand_rows_per_second);
    out->set_utilization_ratio(scale.utilisation);
    out->set_current_replicas(static_cast<uint32_t>(scale.current_replicas));
    out->set_desired_replicas(static_cast<uint32_t>(scale.desired_replicas));
    out->set_reason(scale.reason);
  }
}

}  // namespace expertmesh::router
