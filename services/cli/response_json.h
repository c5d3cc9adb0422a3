#pragma once

// Responses as one line of JSON each.

#include <string>

#include "expertmesh/v1/generation.pb.h"

namespace expertmesh {

// Protobuf's own JSON names and forms on one line. tokenIds, text and logprobs
// are always present, and so are all numbers of usage, timings and routing
// where those are; finishReason and seed only once they are known.
std::string ResponseJson(const v1::GenerateResponse& response);

}  // namespace expertmesh
