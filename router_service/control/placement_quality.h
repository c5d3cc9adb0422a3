#pragma once

// How evenly a placement spreads a given demand.

#include <vector>

#include "router_service/control/placement_problem.h"

namespace expertmesh::router {

// A slot's rows are taken to be split over its replicas in proportion to the
// rates of their hosts. A host's busy rows are its rows over its rate, where
// the mean rate of all hosts is 1: what it takes the time of.
struct PlacementQuality {
  // [num_layers] mean ÷ max busy rows of all hosts; 1 where there is no demand.
  std::vector<double> host_balancedness;
  // [num_layers] mean ÷ max rows of all replicas of the layer.
  std::vector<double> replica_balancedness;
  // Sum over layers of the slowest host's busy rows, over the same with rows
  // spread perfectly: hosts work on one layer at a time, so this is the time of
  // a step over the best possible. 1 where there is no demand.
  double slowest_over_mean = 1;
};

// `hosted` as documented at HostedSlots. Demand for slots hosted nowhere is
// left out of the sums of hosts. Requires: a valid problem, known slots.
PlacementQuality EvaluatePlacement(const PlacementProblem& problem,
                                   const HostedSlots& hosted);

}  // namespace expertmesh::router
