#include "router_service/api/raw_message.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include "absl/strings/str_cat.h"

namespace expertmesh::router {

using Traits = grpc::SerializationTraits<google::protobuf::Message>;

absl::Status ParseMessage(const grpc::ByteBuffer& bytes,
                          google::protobuf::Message* message) {
  grpc::ByteBuffer consumed = bytes;  // shares the slices
  if (Traits::Deserialize(&consumed, message).ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the bytes sent are no ", message->GetTypeName(),
      "; send well-formed Protobuf of that message with strings in UTF-8"));
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message) {
  grpc::ByteBuffer bytes;
  bool own_buffer;
  // Fails only for messages beyond 2 GiB, which no request can ask for.
  Traits::Serialize(message, &bytes, &own_buffer);
  return bytes;
}

}  // namespace expertmesh::router
