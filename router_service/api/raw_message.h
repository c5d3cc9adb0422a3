#pragma once

// Messages of methods in gRPC's raw form. The plain callback form answers bytes
// that it cannot parse itself, with UNIMPLEMENTED and no message, and nobody
// here hears of them; parsed here, they are a counted INVALID_ARGUMENT that
// says what to change.

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/wire/status_codec.h"

namespace expertmesh::router {

// Errors: INVALID_ARGUMENT for bytes that are no such message, and for strings
// that are not UTF-8.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes,
                          google::protobuf::Message* message);

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

// Ends a unary call with what came of it.
template <typename Response>
void FinishUnary(const absl::StatusOr<Response>& result,
                 grpc::ByteBuffer* response,
                 grpc::ServerUnaryReactor* reactor) {
  if (result.ok()) *response = SerializeMessage(*result);
  reactor->Finish(ToGrpcStatus(result.status()));
}

// Answers a unary call at once: with what `answer` makes of its request, or its
// error. `response` is gRPC's, as is the result.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* AnswerUnary(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes,
    grpc::ByteBuffer* response,
    absl::FunctionRef<absl::Status(const Request&, Response*)> answer) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  Request request;
  Response message;
  absl::Status status = ParseMessage(bytes, &request);
  if (status.ok()) status = answer(request, &message);
  if (status.ok()) *response = SerializeMessage(message);
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace expertmesh::router
