#pragma once

// One Score call: a prompt run through the model for its log-probabilities.

#include <memory>

#include <grpcpp/grpcpp.h>

#include "expertmesh/v1/generation.pb.h"
#include "router_service/api/engine_call.h"

namespace expertmesh::router {

class ScoreCall final : public grpc::ServerUnaryReactor, public EngineCall {
 public:
  // `response` is gRPC's until the call ends; the result belongs to gRPC.
  static ScoreCall* Start(const Context& context,
                          const EngineCall::Origin& origin,
                          const grpc::ByteBuffer& bytes,
                          grpc::ByteBuffer* response);

  bool OnToken(const Sequence& sequence, int32_t token,
               const TokenLogprob* logprob) override;
  void OnFinish(const Sequence& sequence, FinishReason reason,
                const absl::Status& status) override;
  void OnCancel() override { Leave(); }
  void OnDone() override { Release(); }

 private:
  ScoreCall(const Context& context, const EngineCall::Origin& origin,
            grpc::ByteBuffer* response)
      : EngineCall(context, Method::kScore, origin), response_(response) {}

  absl::StatusOr<SequenceRequest> Translate() override;
  void Refuse(const grpc::Status& status) override { Finish(status); }

  grpc::ByteBuffer* const response_;
  std::unique_ptr<v1::ScoreRequest> request_;  // until it is translated
};

}  // namespace expertmesh::router
