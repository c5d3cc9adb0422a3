#pragma once

// Conversions between the three ways an outcome is written down.

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "expertmesh/expert/v1/expert.pb.h"

namespace expertmesh {

// Codes are the same numbers on both sides; an unknown number is UNKNOWN.
grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

// The code an expert service answers a batch with. FAILED_PRECONDITION and
// NOT_FOUND mean that an expert is not hosted, CANCELLED that the service is
// shutting down; codes with no counterpart are CODE_INTERNAL.
expert::v1::Code ToWireCode(const absl::Status& status);

// The inverse, with FAILED_PRECONDITION for CODE_NOT_HOSTED. Unspecified and
// unknown codes are INTERNAL. OK drops `message`.
absl::Status FromWireCode(expert::v1::Code code, absl::string_view message);

}  // namespace expertmesh
