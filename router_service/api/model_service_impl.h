#pragma once

// expertmesh.v1.ModelService: what is loaded.

#include <grpcpp/grpcpp.h>

#include "expertmesh/v1/model.grpc.pb.h"
#include "router_service/api/raw_message.h"

namespace expertmesh::router {

// Answers with a description made at start. Thread-safe.
class ModelServiceImpl final
    : public v1::ModelService::WithRawCallbackMethod_GetModel<
          v1::ModelService::Service> {
 public:
  explicit ModelServiceImpl(v1::Model model) : model_(std::move(model)) {}

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override {
    return AnswerUnary<v1::GetModelRequest, v1::Model>(
        context, *request, response,
        [this](const auto&, v1::Model* model) { *model = model_; });
  }

 private:
  const v1::Model model_;
};

}  // namespace expertmesh::router
