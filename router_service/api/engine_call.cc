#include "router_service/api/engine_call.h"

#include <utility>

#include "absl/time/clock.h"
#include "router_service/api/response_fields.h"
#include "services/wire/status_codec.h"

namespace expertmesh::router {

void EngineCall::Begin(const std::shared_ptr<EngineCall>& self,
                       absl::Status parsed, const std::string& request_id,
                       size_t size) {
  self_ = self;
  request_id_ = request_id;
  absl::Status status = std::move(parsed);
  if (status.ok()) {
    status = context_.text_worker->Run(size, [self] { self->Submit(); });
  }
  if (!status.ok() && Enter(Stage::kRefused)) End(status);
}

bool EngineCall::Enter(Stage stage) {
  MutexLock lock(&mutex_);
  if (stage_ != Stage::kTranslating) return false;
  stage_ = stage;
  return true;
}

void EngineCall::Submit() {
  {
    MutexLock lock(&mutex_);
    if (stage_ != Stage::kTranslating) return;
  }
  absl::StatusOr<SequenceRequest> request = Translate();
  if (!request.ok()) {
    if (Enter(Stage::kRefused)) End(request.status());
    return;
  }
  if (!Enter(Stage::kSubmitted)) return;
  request_id_ = request->request_id;
  request->trace = trace_;
  const absl::StatusOr<uint64_t> id =
      context_.engine->Submit(*std::move(request), self_);
  if (!id.ok()) return End(id.status());
  MutexLock lock(&mutex_);
  engine_id_ = *id;
  if (is_cancelled_) {
    context_.engine->Cancel(*id, ClientGone(deadline_, absl::Now()));
  }
}

void EngineCall::Leave() {
  const absl::Status gone = ClientGone(deadline_, absl::Now());
  if (Enter(Stage::kRefused)) return End(gone);
  MutexLock lock(&mutex_);
  is_cancelled_ = true;
  if (engine_id_ != 0) context_.engine->Cancel(engine_id_, gone);
}

void EngineCall::End(const absl::Status& status) {
  LogRefused(method_, request_id_, status, trace_id());
  if (trace_) {
    context_.tracer->RecordRefused(
        *trace_,
        {method_, deadline_.arrival,
         request_id_.size() <= kMaxRequestIdBytes ? request_id_ : ""},
        status);
  }
  context_.metrics->Count(method_, status);
  Refuse(ToGrpcStatus(status));
}

void EngineCall::Account(const Sequence& sequence, FinishReason reason,
                         const absl::Status& status) const {
  const absl::Duration now = context_.clock->Now();
  context_.metrics->Count(method_, status);
  LogFinished(method_, sequence, status, now, trace_id());
  if (trace_) {
    context_.tracer->RecordFinished(
        *trace_, {method_, deadline_.arrival, sequence.request.request_id},
        sequence, reason, status, now);
  }
}

}  // namespace expertmesh::router
