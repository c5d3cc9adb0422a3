#include "expert_service/execution/slot_load.h"

namespace expertmesh::expert {

SlotLoad::SlotLoad(int64_t num_layers, int64_t num_experts)
    : num_layers_(num_layers),
      num_experts_(num_experts),
      rows_(static_cast<size_t>(num_layers * num_experts)) {}

}  // namespace expertmesh::expert
