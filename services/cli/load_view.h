#pragma once

// One frame of `expertmesh top`.

#include <cstddef>
#include <cstdint>
#include <string>

#include "expertmesh/admin/v1/admin.pb.h"

namespace expertmesh {

// Plain text without colours, each line at most `width` columns wide (bars of a
// layer are folded together where experts are many).
std::string LoadView(const admin::v1::GetExpertLoadResponse& load,
                     const admin::v1::ListEndpointsResponse& endpoints,
                     size_t width);

// What a service holds: "experts 0-3 of 4 layers", or by layer where the
// layers differ; "nothing".
std::string HostedText(
    const google::protobuf::RepeatedPtrField<admin::v1::HostedExperts>& hosted);

// "1.5 GiB", "212.0 MiB", "512 B".
std::string BytesText(uint64_t bytes);

}  // namespace expertmesh
