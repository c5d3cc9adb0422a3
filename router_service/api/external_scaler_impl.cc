#include "router_service/api/external_scaler_impl.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "router_service/api/raw_message.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

using externalscaler::GetMetricSpecResponse;
using externalscaler::GetMetricsRequest;
using externalscaler::GetMetricsResponse;
using externalscaler::IsActiveResponse;
using externalscaler::ScaledObjectRef;

constexpr char kPoolKey[] = "pool";  // in scalerMetadata

absl::Status CheckMetricName(const std::string& name) {
  if (name == ExternalScalerImpl::kMetricName) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("there is no metric '", name, "'; there is ",
                   ExternalScalerImpl::kMetricName));
}

}  // namespace

// One StreamIsActive call. Keeps one write under way; what changes meanwhile is
// told when it is done.
class ExternalScalerImpl::ActivityStream final
    : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  ActivityStream(ExternalScalerImpl* owner, ScaledObjectRef trigger)
      : owner_(owner), trigger_(std::move(trigger)) {}

  void Update() {
    const auto replicas = owner_->DesiredReplicas(trigger_);
    if (!replicas.ok()) return End(replicas.status());
    {
      MutexLock lock(&mutex_);
      is_active_ = *replicas > 0;
      if (end_.has_value() || is_writing_ || told_ == is_active_) return;
      Prepare();
    }
    StartWrite(&message_);
  }

  void End(const absl::Status& status) {
    {
      MutexLock lock(&mutex_);
      if (end_.has_value()) return;
      end_ = status;
      if (is_writing_) return;  // OnWriteDone finishes
    }
    Finish(ToGrpcStatus(status));
  }

  void OnWriteDone(bool ok) override {
    absl::Status status;
    bool is_over = false;
    {
      MutexLock lock(&mutex_);
      is_writing_ = false;
      if (!ok && !end_.has_value()) end_ = absl::CancelledError("");
      is_over = end_.has_value();
      if (is_over) {
        status = *end_;
      } else if (told_ == is_active_) {
        return;
      } else {
        Prepare();
      }
    }
    if (is_over) {
      Finish(ToGrpcStatus(status));
    } else {
      StartWrite(&message_);
    }
  }

  void OnCancel() override { End(absl::CancelledError("")); }
  void OnDone() override { owner_->Remove(this); }

 private:
  // Makes the message to write.
  void Prepare() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    IsActiveResponse response;
    response.set_result(is_active_);
    message_ = SerializeMessage(response);
    told_ = is_active_;
    is_writing_ = true;
  }

  ExternalScalerImpl* const owner_;
  const ScaledObjectRef trigger_;
  grpc::ByteBuffer message_;  // of the write under way
  Mutex mutex_;
  bool is_active_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<bool> told_ ABSL_GUARDED_BY(mutex_);
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
};

ExternalScalerImpl::ExternalScalerImpl(const ScaleMonitor* monitor)
    : monitor_(monitor) {}

ExternalScalerImpl::~ExternalScalerImpl() {
  EndStreams();
  MutexLock lock(&mutex_);
  removed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return streams_.empty();
  });
}

void ExternalScalerImpl::Publish() {
  std::vector<std::shared_ptr<ActivityStream>> streams;
  {
    MutexLock lock(&mutex_);
    streams = streams_;
  }
  for (const auto& stream : streams) stream->Update();
}

void ExternalScalerImpl::EndStreams() {
  std::vector<std::shared_ptr<ActivityStream>> streams;
  {
    MutexLock lock(&mutex_);
    ended_ = true;
    streams = streams_;
  }
  for (const auto& stream : streams) {
    stream->End(absl::UnavailableError("the router is shutting down"));
  }
}

void ExternalScalerImpl::Remove(ActivityStream* stream) {
  std::shared_ptr<ActivityStream> last;  // destroyed outside the lock
  MutexLock lock(&mutex_);
  const auto place =
      std::find_if(streams_.begin(), streams_.end(),
                   [&](const auto& other) { return other.get() == stream; });
  last = std::move(*place);
  streams_.erase(place);
  // Under the lock: the destructor may end as soon as it sees none left.
  removed_.NotifyAll();
}

absl::StatusOr<int> ExternalScalerImpl::DesiredReplicas(
    const ScaledObjectRef& trigger) const {
  const auto found = trigger.scalermetadata().find(kPoolKey);
  const bool is_given = found != trigger.scalermetadata().end();
  std::vector<std::string> names;
  for (const PoolScale& pool : monitor_->Pools()) {
    if (is_given && pool.pool == found->second) {
      return pool.recommendation.desired_replicas;
    }
    names.push_back(pool.pool);
  }
  return absl::InvalidArgumentError(absl::StrCat(
      is_given ? absl::StrCat("there is no pool '", found->second, "'")
               : "the trigger's metadata lacks 'pool'",
      "; the pools are ", absl::StrJoin(names, ", ")));
}

grpc::ServerUnaryReactor* ExternalScalerImpl::IsActive(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return AnswerUnary<ScaledObjectRef, IsActiveResponse>(
      context, *request, response,
      [this](const ScaledObjectRef& trigger, IsActiveResponse* out) {
        ASSIGN_OR_RETURN(const int replicas, DesiredReplicas(trigger));
        out->set_result(replicas > 0);
        return absl::OkStatus();
      });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ExternalScalerImpl::StreamIsActive(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  ScaledObjectRef trigger;
  const absl::Status status = ParseMessage(*request, &trigger);
  auto stream = std::make_shared<ActivityStream>(this, std::move(trigger));
  bool ended = false;
  {
    MutexLock lock(&mutex_);
    ended = ended_;
    streams_.push_back(stream);
  }
  if (!status.ok()) {
    stream->End(status);
  } else if (ended) {
    stream->End(absl::UnavailableError("the router is shutting down"));
  } else {
    stream->Update();
  }
  return stream.get();
}

grpc::ServerUnaryReactor* ExternalScalerImpl::GetMetricSpec(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return AnswerUnary<ScaledObjectRef, GetMetricSpecResponse>(
      context, *request, response,
      [this](const ScaledObjectRef& trigger, GetMetricSpecResponse* out) {
        RETURN_IF_ERROR(DesiredReplicas(trigger).status());
        externalscaler::MetricSpec* spec = out->add_metricspecs();
        spec->set_metricname(kMetricName);
        spec->set_targetsize(1);
        spec->set_targetsizefloat(1);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ExternalScalerImpl::GetMetrics(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return AnswerUnary<GetMetricsRequest, GetMetricsResponse>(
      context, *request, response,
      [this](const GetMetricsRequest& asked, GetMetricsResponse* out) {
        ASSIGN_OR_RETURN(const int replicas,
                         DesiredReplicas(asked.scaledobjectref()));
        RETURN_IF_ERROR(CheckMetricName(asked.metricname()));
        externalscaler::MetricValue* value = out->add_metricvalues();
        value->set_metricname(kMetricName);
        value->set_metricvalue(replicas);
        value->set_metricvaluefloat(replicas);
        return absl::OkStatus();
      });
}

}  // namespace expertmesh::router
