#pragma once

#include <cstdint>

#include "services/checkpoint/config_reader.h"
#include "services/checkpoint/model_config.h"

namespace expertmesh {

// Rotary position embedding from config.json, in the old spelling (rope_theta,
// rope_scaling with type or rope_type) or the new one (rope_parameters).
// `max_positions` stands in for an absent original_max_position_embeddings.
// Faults stay in the reader: types other than those of RopeType are refused by
// name, as are absent fields that a type needs.
RopeConfig ParseRope(ConfigReader& reader, int64_t head_dim,
                     int64_t max_positions, double default_theta);

}  // namespace expertmesh
