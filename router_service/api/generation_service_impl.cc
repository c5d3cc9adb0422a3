#include "router_service/api/generation_service_impl.h"

#include <memory>
#include <utility>

#include "router_service/api/generate_call.h"
#include "router_service/api/raw_message.h"
#include "router_service/api/score_call.h"
#include "router_service/api/text_call.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationServiceImpl::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return GenerateCall::Start({context_, tokenizer_, num_experts_},
                             EngineCall::Origin::Of(*context), *request);
}

grpc::ServerUnaryReactor* GenerationServiceImpl::Score(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return ScoreCall::Start(context_, EngineCall::Origin::Of(*context), *request,
                          response);
}

grpc::ServerUnaryReactor* GenerationServiceImpl::Tokenize(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  const auto request = std::make_shared<v1::TokenizeRequest>();
  absl::Status parsed = ParseMessage(*bytes, request.get());
  if (parsed.ok()) parsed = CheckTextSize(request->text());
  const auto answer = [translator = context_.translator,
                       request]() -> absl::StatusOr<grpc::ByteBuffer> {
    ASSIGN_OR_RETURN(const v1::TokenizeResponse message,
                     translator->Tokenize(*request));
    return SerializeMessage(message);
  };
  return TextCall::Start({context_.text_worker, &metrics_}, Method::kTokenize,
                         CallDeadline::Of(*context), std::move(parsed),
                         request->text().size(), answer, response);
}

grpc::ServerUnaryReactor* GenerationServiceImpl::Detokenize(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  const auto request = std::make_shared<v1::DetokenizeRequest>();
  absl::Status parsed = ParseMessage(*bytes, request.get());
  const auto answer = [translator = context_.translator,
                       request]() -> absl::StatusOr<grpc::ByteBuffer> {
    ASSIGN_OR_RETURN(const v1::DetokenizeResponse message,
                     translator->Detokenize(*request));
    return SerializeMessage(message);
  };
  return TextCall::Start({context_.text_worker, &metrics_}, Method::kDetokenize,
                         CallDeadline::Of(*context), std::move(parsed),
                         request->token_ids_size(), answer, response);
}

}  // namespace expertmesh::router
