#pragma once

// expertmesh.v1.ModelService: what is loaded.

#include <grpcpp/grpcpp.h>

#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "expertmesh/v1/model.grpc.pb.h"
#include "router_service/api/raw_message.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Answers with a description made at start, in which only the capacity
// changes. Thread-safe.
class ModelServiceImpl final
    : public v1::ModelService::WithRawCallbackMethod_GetModel<
          v1::ModelService::Service> {
 public:
  explicit ModelServiceImpl(v1::Model model) : model_(std::move(model)) {}

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override {
    return AnswerUnary<v1::GetModelRequest, v1::Model>(
        context, *request, response, [this](const auto&, v1::Model* model) {
          MutexLock lock(&mutex_);
          *model = model_;
          return absl::OkStatus();
        });
  }

  void SetCapacity(double capacity_factor, absl::string_view overflow_policy) {
    MutexLock lock(&mutex_);
    model_.set_capacity_factor(capacity_factor);
    model_.set_overflow_policy(std::string(overflow_policy));
  }

 private:
  Mutex mutex_;
  v1::Model model_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertmesh::router
