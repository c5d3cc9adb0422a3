#include "services/wire/status_codec.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace expertmesh {

using expert::v1::Code;

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      std::string(status.message()));
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const int code = status.error_code();
  const bool known =
      code > 0 && code <= static_cast<int>(absl::StatusCode::kUnauthenticated);
  return absl::Status(
      known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
      status.error_message());
}

Code ToWireCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return expert::v1::CODE_OK;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return expert::v1::CODE_INVALID_ARGUMENT;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kNotFound:
      return expert::v1::CODE_NOT_HOSTED;
    case absl::StatusCode::kResourceExhausted:
      return expert::v1::CODE_RESOURCE_EXHAUSTED;
    case absl::StatusCode::kDeadlineExceeded:
      return expert::v1::CODE_DEADLINE_EXCEEDED;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:
      return expert::v1::CODE_UNAVAILABLE;
    default:
      return expert::v1::CODE_INTERNAL;
  }
}

absl::Status FromWireCode(Code code, absl::string_view message) {
  switch (code) {
    case expert::v1::CODE_OK:
      return absl::OkStatus();
    case expert::v1::CODE_INVALID_ARGUMENT:
      return absl::InvalidArgumentError(message);
    case expert::v1::CODE_NOT_HOSTED:
      return absl::FailedPreconditionError(message);
    case expert::v1::CODE_RESOURCE_EXHAUSTED:
      return absl::ResourceExhaustedError(message);
    case expert::v1::CODE_DEADLINE_EXCEEDED:
      return absl::DeadlineExceededError(message);
    case expert::v1::CODE_INTERNAL:
      return absl::InternalError(message);
    case expert::v1::CODE_UNAVAILABLE:
      return absl::UnavailableError(message);
    default:
      return absl::InternalError(
          absl::StrCat("unknown code ", static_cast<int>(code), ": ", message));
  }
}

}  // namespace expertmesh
