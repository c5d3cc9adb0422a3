// Streams generated text from an Expertmesh router:
//   generate_client 127.0.0.1:50051 "ROMEO:"

#include <grpcpp/grpcpp.h>

#include <iostream>

#include "expertmesh/v1/generation.grpc.pb.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: generate_client HOST:PORT PROMPT\n";
    return 2;
  }
  const auto channel =
      grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials());
  const auto stub = expertmesh::v1::GenerationService::NewStub(channel);

  expertmesh::v1::GenerateRequest request;
  request.set_text(argv[2]);
  request.set_max_tokens(64);
  request.set_temperature(0);

  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, request);
  expertmesh::v1::GenerateResponse response;
  while (reader->Read(&response)) {
    std::cout << response.text() << std::flush;
    if (response.has_routing()) {
      std::cerr << '\n'
                << response.usage().generated_tokens() << " tokens, "
                << response.routing().primary() << " expert rows\n";
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) {
    std::cerr << "generate_client: " << status.error_message() << '\n';
    return 1;
  }
}
