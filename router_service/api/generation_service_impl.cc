#include "router_service/api/generation_service_impl.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router_service/api/generate_call.h"
#include "router_service/api/score_call.h"
#include "services/core/status_macros.h"
#include "services/wire/status_codec.h"

namespace expertmesh::router {
namespace {

absl::Status TokenizeText(const RequestTranslator& translator,
                          const v1::TokenizeRequest& request,
                          v1::TokenizeResponse* response) {
  ASSIGN_OR_RETURN(const Tokenizer* tokenizer, translator.tokenizer());
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   tokenizer->Encode(request.text(), !request.no_special()));
  response->mutable_token_ids()->Add(ids.begin(), ids.end());
  return absl::OkStatus();
}

absl::Status DetokenizeIds(const RequestTranslator& translator,
                           const v1::DetokenizeRequest& request,
                           v1::DetokenizeResponse* response) {
  ASSIGN_OR_RETURN(const Tokenizer* tokenizer, translator.tokenizer());
  for (const uint32_t id : request.token_ids()) {
    if (id < static_cast<uint32_t>(tokenizer->vocab_size())) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("token id ", id,
                     " is outside the tokenizer's vocabulary "
                     "of ",
                     tokenizer->vocab_size()));
  }
  const std::vector<int32_t> ids(request.token_ids().begin(),
                                 request.token_ids().end());
  response->set_text(tokenizer->Decode(ids, request.skip_special()));
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context,
                                 const ApiMetrics& metrics, Method method,
                                 const absl::Status& status) {
  metrics.Count(method, status);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* GenerationServiceImpl::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return GenerateCall::Start(
      {engine_, tokenizer_, &metrics_, clock_, num_experts_},
      absl::FromChrono(context->deadline()), translator_->Translate(*request),
      {request->stop().begin(), request->stop().end()});
}

grpc::ServerUnaryReactor* GenerationServiceImpl::Score(
    grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
    v1::ScoreResponse* response) {
  return ScoreCall::Start({engine_, &metrics_, clock_},
                          absl::FromChrono(context->deadline()),
                          translator_->Translate(*request), response);
}

grpc::ServerUnaryReactor* GenerationServiceImpl::Tokenize(
    grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
    v1::TokenizeResponse* response) {
  return Finish(context, metrics_, Method::kTokenize,
                TokenizeText(*translator_, *request, response));
}

grpc::ServerUnaryReactor* GenerationServiceImpl::Detokenize(
    grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
    v1::DetokenizeResponse* response) {
  return Finish(context, metrics_, Method::kDetokenize,
                DetokenizeIds(*translator_, *request, response));
}

}  // namespace expertmesh::router
