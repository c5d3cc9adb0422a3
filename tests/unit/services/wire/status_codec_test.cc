#include "services/wire/status_codec.h"

#include <gtest/gtest.h>

namespace expertmesh {
namespace {

TEST(StatusCodec, EveryCodeSurvivesGrpc) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(status)), status) << code;
    EXPECT_EQ(static_cast<int>(ToGrpcStatus(status).error_code()), code);
  }
}

TEST(StatusCodec, AnUnknownGrpcCodeIsUnknown) {
  const grpc::Status strange(grpc::StatusCode::DO_NOT_USE, "why");
  EXPECT_EQ(FromGrpcStatus(strange), absl::UnknownError("why"));
}

TEST(StatusCodec, WireCodesSurvive) {
  for (const absl::Status& status :
       {absl::OkStatus(), absl::InvalidArgumentError("m"),
        absl::FailedPreconditionError("m"), absl::ResourceExhaustedError("m"),
        absl::DeadlineExceededError("m"), absl::InternalError("m"),
        absl::UnavailableError("m")}) {
    EXPECT_EQ(FromWireCode(ToWireCode(status), "m"), status);
  }
}

TEST(StatusCodec, NeverTurnsAnErrorIntoOk) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "m");
    EXPECT_NE(ToWireCode(status), expert::v1::CODE_OK) << code;
  }
  EXPECT_EQ(FromWireCode(expert::v1::CODE_UNSPECIFIED, "m").code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(FromWireCode(static_cast<expert::v1::Code>(77), "m").code(),
            absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace expertmesh
