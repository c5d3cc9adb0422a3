#pragma once

// expertmesh.v1.GenerationService: validates, delegates, converts status.

#include <grpcpp/grpcpp.h>

#include "expertmesh/v1/generation.grpc.pb.h"
#include "router_service/api/api_metrics.h"
#include "router_service/api/engine_call.h"
#include "router_service/api/request_translator.h"
#include "router_service/api/text_worker.h"
#include "router_service/engine/engine.h"
#include "services/core/clock.h"
#include "services/text/tokenizer.h"

namespace expertmesh::router {

// Thread-safe. Pointers must outlive this. Methods take bytes: raw_message.h.
class GenerationServiceImpl final
    : public v1::GenerationService::WithRawCallbackMethod_Generate<
          v1::GenerationService::WithRawCallbackMethod_Score<
              v1::GenerationService::WithRawCallbackMethod_Tokenize<
                  v1::GenerationService::WithRawCallbackMethod_Detokenize<
                      v1::GenerationService::Service>>>> {
 public:
  // `tokenizer` may be null: then only token ids are served. So may `tracer`:
  // then no request has a trace.
  GenerationServiceImpl(const RequestTranslator* translator, Engine* engine,
                        TextWorker* text_worker, const Tokenizer* tokenizer,
                        const ApiMetrics& metrics, const Clock* clock,
                        int64_t num_experts,
                        const RequestTracer* tracer = nullptr)
      : metrics_(metrics),
        context_({translator, engine, text_worker, &metrics_, clock, tracer}),
        tokenizer_(tokenizer),
        num_experts_(num_experts) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(
      grpc::CallbackServerContext* context,
      const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  const ApiMetrics metrics_;
  const EngineCall::Context context_;
  const Tokenizer* const tokenizer_;
  const int64_t num_experts_;
};

}  // namespace expertmesh::router
