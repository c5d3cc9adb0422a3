#pragma once

// expertmesh.v1.GenerationService: validates, delegates, converts status.

#include <grpcpp/grpcpp.h>

#include "expertmesh/v1/generation.grpc.pb.h"
#include "router_service/api/api_metrics.h"
#include "router_service/api/request_translator.h"
#include "router_service/engine/engine.h"
#include "services/core/clock.h"
#include "services/text/tokenizer.h"

namespace expertmesh::router {

// Thread-safe. Pointers must outlive this.
class GenerationServiceImpl final
    : public v1::GenerationService::CallbackService {
 public:
  GenerationServiceImpl(const RequestTranslator* translator, Engine* engine,
                        const Tokenizer* tokenizer, const ApiMetrics& metrics,
                        const Clock* clock, int64_t num_experts)
      : translator_(translator),
        engine_(engine),
        tokenizer_(tokenizer),
        metrics_(metrics),
        clock_(clock),
        num_experts_(num_experts) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context,
      const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(
      grpc::CallbackServerContext* context,
      const v1::DetokenizeRequest* request,
      v1::DetokenizeResponse* response) override;

 private:
  const RequestTranslator* const translator_;
  Engine* const engine_;
  const Tokenizer* const tokenizer_;  // null: token ids only
  const ApiMetrics metrics_;
  const Clock* const clock_;
  const int64_t num_experts_;
};

}  // namespace expertmesh::router
