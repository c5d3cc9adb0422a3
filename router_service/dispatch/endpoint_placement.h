#pragma once

// From what endpoints announce to which of them serves each slot.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "router_service/dispatch/placement.h"
#include "router_service/transport/endpoint_set.h"
#include "services/checkpoint/model_config.h"

namespace expertmesh::router {

struct EndpointPlacement {
  std::shared_ptr<const Placement> placement;
  int64_t uncovered_slots = 0;  // of MoE layers, served by no endpoint
  int64_t copies = 0;           // of slots, on ready endpoints
  // Of which process holds which slots, in 32 bits and in any order: two
  // routers that agree on it route to the same copies.
  uint32_t checksum = 0;
};

// Every ready endpoint serves what it hosts; endpoints are indices of the
// transport. What lies outside the model is ignored. A slot that no ready
// endpoint hosts is served by draining ones, which answer what comes all the
// same.
//   numerics_id   the mesh's: endpoints with another one serve when none of
//                 these can
//   pool_weights  by pool; 1 where absent
EndpointPlacement PlaceOnEndpoints(
    const ModelConfig& config, const std::vector<EndpointInfo>& endpoints,
    const std::string& numerics_id,
    const std::map<std::string, double>& pool_weights = {});

// The numerics_id a mesh goes on with: `current` as long as a ready endpoint
// has it, so that no endpoint that comes or goes changes results; else the one
// that hosts most slots. Empty without ready endpoints.
std::string MeshNumericsId(const std::vector<EndpointInfo>& endpoints,
                           const std::string& current = "");

// Follows a mesh's numerics_id as endpoints come and go. One thread.
class MeshNumerics {
 public:
  // Chooses the id to place the endpoints by. Returns whether that ends what
  // the one before computed, so that nothing of it may be shared once they are
  // placed. None at all ends nothing: then no endpoint counts as the mesh's.
  bool Choose(const std::vector<EndpointInfo>& endpoints);

  // Every slot is covered: what was chosen last is the mesh's. Until then it
  // goes back to the one before when an endpoint of that one comes back.
  void Keep() { kept_ = chosen_; }

  const std::string& chosen() const { return chosen_; }
  const std::string& kept() const { return kept_; }  // empty: none yet

 private:
  std::string chosen_;
  std::string last_;  // chosen that was not empty
  std::string kept_;
};

}  // namespace expertmesh::router
