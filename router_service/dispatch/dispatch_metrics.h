#pragma once

#include <prometheus/counter.h>

namespace expertmesh::router {

// What dispatch counts; null members are not counted. Owned by the registry.
struct DispatchMetrics {
  // expertmesh_router_resent_batches_total: batches asked of another replica,
  // or of the same one again, by reason.
  prometheus::Counter* resent_error = nullptr;    // connection lost, or a fault
  prometheus::Counter* resent_refused = nullptr;  // not hosted, or queue full
  prometheus::Counter* resent_overdue = nullptr;  // no answer in time
  // expertmesh_router_hedged_batches_total.
  prometheus::Counter* hedged = nullptr;
  // expertmesh_router_crossed_rows_total: rows sent to an endpoint whose
  // numerics_id is not the mesh's, because no other could serve them or they
  // may go to any.
  prometheus::Counter* crossed_rows = nullptr;
};

}  // namespace expertmesh::router
