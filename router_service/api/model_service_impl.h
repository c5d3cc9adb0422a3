#pragma once

// expertmesh.v1.ModelService: what is loaded.

#include <grpcpp/grpcpp.h>

#include "expertmesh/v1/model.grpc.pb.h"

namespace expertmesh::router {

// Answers with a description made at start. Thread-safe.
class ModelServiceImpl final : public v1::ModelService::CallbackService {
 public:
  explicit ModelServiceImpl(v1::Model model) : model_(std::move(model)) {}

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest*,
                                     v1::Model* response) override {
    *response = model_;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  const v1::Model model_;
};

}  // namespace expertmesh::router
