#include "tests/support/local_engine.h"

#include <gtest/gtest.h>

#include <bit>

#include "absl/strings/str_cat.h"

#include "router_service/router_metrics.h"
#include "services/core/status_macros.h"
#include "services/linalg/gemm.h"

namespace expertmesh::testing {
namespace {

void AppendBits(const std::vector<router::TokenLogprob>& logprobs,
                std::string* out) {
  for (const router::TokenLogprob& logprob : logprobs) {
    absl::StrAppend(out, logprob.token_id, ":",
                    absl::Hex(std::bit_cast<uint32_t>(logprob.logprob)), " ");
    for (const auto& [id, value] : logprob.top) {
      absl::StrAppend(out, id, "/", absl::Hex(std::bit_cast<uint32_t>(value)),
                      " ");
    }
    absl::StrAppend(out, "\n");
  }
}

}  // namespace

std::string Bits(const RecordingSink::Record& record) {
  std::string out;
  AppendBits(record.prompt_logprobs, &out);
  AppendBits(record.logprobs, &out);
  return out;
}

RecordingSink::Record RecordingSink::Await() {
  MutexLock lock(&mutex_);
  changed_.Wait(lock, [this] { return ended_; });
  return record_;
}

void RecordingSink::AwaitTokens(size_t count) {
  MutexLock lock(&mutex_);
  changed_.Wait(lock, [&] { return ended_ || record_.tokens.size() >= count; });
}

bool RecordingSink::OnToken(const router::Sequence&, int32_t token,
                            const router::TokenLogprob* logprob) {
  MutexLock lock(&mutex_);
  record_.tokens.push_back(token);
  if (logprob != nullptr) record_.logprobs.push_back(*logprob);
  changed_.NotifyAll();
  return stop_after_ == 0 || record_.tokens.size() < stop_after_;
}

void RecordingSink::OnFinish(const router::Sequence& sequence,
                             router::FinishReason reason,
                             const absl::Status& status) {
  MutexLock lock(&mutex_);
  record_.prompt_logprobs = sequence.prompt_logprobs;
  record_.expert_rows = sequence.expert_rows;
  record_.routing = sequence.routing;
  record_.cached_tokens = sequence.num_cached;
  record_.reason = reason;
  record_.status = status;
  ended_ = true;
  changed_.NotifyAll();
}

absl::StatusOr<std::unique_ptr<LocalEngine>> LocalEngine::Load(
    const std::string& directory, const LocalEngineOptions& options) {
  auto out = std::make_unique<LocalEngine>();
  ASSIGN_OR_RETURN(out->model, LocalModel::Load(directory, options.model));
  LocalModel& model = *out->model;
  out->metrics = std::make_unique<Metrics>("router", IsaName());
  router::EngineOptions engine = options.engine;
  engine.max_context_tokens = options.model.max_context_tokens;
  engine.scheduler.max_step_tokens = options.model.max_step_tokens;
  out->engine = std::make_unique<router::Engine>(
      engine, model.config(), model.transformer.get(), model.cache.get(),
      model.pool.get(),
      router::MakeEngineMetrics(model.config(), ExpertDetail::kTopK,
                                out->metrics.get()),
      Clock::Real());
  return out;
}

std::shared_ptr<RecordingSink> LocalEngine::Submit(
    router::SequenceRequest request) {
  auto sink = std::make_shared<RecordingSink>();
  const auto id = engine->Submit(std::move(request), sink);
  EXPECT_TRUE(id.ok()) << id.status();
  return sink;
}

RecordingSink::Record LocalEngine::Run(router::SequenceRequest request) {
  return Submit(std::move(request))->Await();
}

}  // namespace expertmesh::testing
