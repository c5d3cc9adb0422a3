#include "services/runtime/server_runtime.h"

#include <gmock/gmock.h>
#include <google/protobuf/stubs/logging.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>

#include "services/core/log.h"

namespace expertmesh {
namespace {

// grpc.health.v1.Health/Check by its bytes; returns ServingStatus (1: SERVING,
// 2: NOT_SERVING) or minus the gRPC code.
int Health(const std::string& address, const std::string& service) {
  grpc::GenericStub stub(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  std::string request;
  if (!service.empty()) {
    request =
        "\x0a" + std::string(1, static_cast<char>(service.size())) + service;
  }
  const grpc::Slice slice(request);
  const grpc::ByteBuffer bytes(&slice, 1);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", {}, &bytes,
                 &response,
                 [&](grpc::Status status) { done.set_value(status); });
  const grpc::Status status = done.get_future().get();
  if (!status.ok()) return -status.error_code();
  grpc::Slice answer;
  EXPECT_TRUE(response.DumpToSingleSlice(&answer).ok());
  return answer.size() == 2 ? answer.begin()[1] : 0;
}

std::unique_ptr<GrpcServer> StartServer() {
  GrpcServerOptions options;
  options.health_names = {"expertmesh.test.Service"};
  auto server = GrpcServer::Start(options, {});
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

constexpr int kServing = 1;
constexpr int kNotServing = 2;

TEST(GrpcServer, HealthIsWhatTheOwnerSays) {
  const auto server = StartServer();
  const std::string address = server->address();
  EXPECT_EQ(Health(address, ""), kNotServing);
  EXPECT_EQ(Health(address, "expertmesh.test.Service"), kNotServing);

  server->SetServing("expertmesh.test.Service", true);
  EXPECT_EQ(Health(address, ""), kNotServing);
  EXPECT_EQ(Health(address, "expertmesh.test.Service"), kServing);

  server->SetServing(true);
  EXPECT_EQ(Health(address, ""), kServing);
  EXPECT_EQ(Health(address, "no.such.Service"), -grpc::StatusCode::NOT_FOUND);
}

TEST(GrpcServer, ATakenPortIsAnError) {
  RouteGrpcLogs();
  const auto server = StartServer();
  GrpcServerOptions options;
  options.listen = server->address();
  testing::internal::CaptureStderr();
  const auto second = GrpcServer::Start(options, {});
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(second.status().message(), "cannot listen on " + server->address() +
                                           ": Address already in use");
}

TEST(RouteGrpcLogs, ProtobufPrintsNoLinesOfItsOwn) {
  RouteGrpcLogs();
  const auto complain = [] { GOOGLE_LOG(ERROR) << "not UTF-8"; };
  testing::internal::CaptureStderr();
  complain();
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  ConfigureLog("test", LogLevel::kDebug, LogFormat::kText);
  testing::internal::CaptureStderr();
  complain();
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::EndsWith(" debug test: not UTF-8 source=protobuf\n"));
  ConfigureLog("expertmesh", LogLevel::kInfo, LogFormat::kText);
}

TEST(GrpcServer, AMalformedAddressIsAnError) {
  GrpcServerOptions options;
  options.listen = "localhost";
  EXPECT_EQ(GrpcServer::Start(options, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(GrpcServer, ShutdownFreesThePort) {
  auto server = StartServer();
  GrpcServerOptions options;
  options.listen = server->address();
  server->Shutdown(absl::Seconds(5));
  const auto second = GrpcServer::Start(options, {});
  EXPECT_TRUE(second.ok()) << second.status();
}

}  // namespace
}  // namespace expertmesh
