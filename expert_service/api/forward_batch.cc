#include "expert_service/api/forward_batch.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "expert_service/api/forward_stream.h"
#include "services/core/status_macros.h"
#include "services/wire/status_codec.h"

namespace expertmesh::expert {
namespace {

uint32_t Microseconds(absl::Duration duration) {
  constexpr int64_t kMax = std::numeric_limits<uint32_t>::max();
  return static_cast<uint32_t>(
      std::clamp<int64_t>(absl::ToInt64Microseconds(duration), 0, kMax));
}

}  // namespace

absl::Status ForwardBatch::Decode(const grpc::ByteBuffer& message) {
  message_bytes_ = message.Length();
  return decoded_.Decode(message);
}

absl::Status ForwardBatch::TakeBytes(ByteBudget* budget) {
  const uint64_t bytes = message_bytes_ + decoded_.result_bytes();
  if (!budget->Take(bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the service holds ", budget->taken(), " of ", budget->max_bytes(),
        " bytes in flight and has no room for ", bytes,
        "; send fewer batches at a time"));
  }
  taken_bytes_ = bytes;
  return absl::OkStatus();
}

void ForwardBatch::GiveBytes(ByteBudget* budget) {
  const uint64_t bytes = std::exchange(taken_bytes_, 0);
  if (bytes > 0) budget->Give(bytes);
}

absl::Status ForwardBatch::Prepare(const ModelShape& shape) {
  RETURN_IF_ERROR(decoded_.Validate());
  if (decoded_.layer() >= shape.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", decoded_.layer(), " is not below the model's ",
                     shape.num_layers, " layers"));
  }
  if (decoded_.hidden_size() != shape.hidden_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("hidden_size ", decoded_.hidden_size(),
                     " is not the model's ", shape.hidden_size));
  }
  layer = decoded_.layer();
  dtype = decoded_.dtype();
  expert_ids = decoded_.expert_ids();
  group_offsets = decoded_.group_offsets();
  num_rows = static_cast<int64_t>(decoded_.num_rows());
  row_weight = decoded_.row_weight();
  row_sum = decoded_.row_sum();
  num_sums = decoded_.num_sums();
  num_lone_rows = decoded_.num_lone_rows();
  timeout = decoded_.timeout_ms() == 0
                ? absl::InfiniteDuration()
                : absl::Milliseconds(decoded_.timeout_ms());
  return absl::OkStatus();
}

void ForwardBatch::CopyRows(int64_t first, int64_t last, std::byte* out) const {
  decoded_.CopyRows(static_cast<size_t>(first), static_cast<size_t>(last), out);
}

void ForwardBatch::Trace(const absl::Status& status,
                         const WorkTiming& timing) const {
  std::vector<TraceContext> sampled;
  const auto add = [&sampled](absl::string_view traceparent) {
    const auto context = ParseTraceparent(traceparent);
    if (context && context->is_sampled) sampled.push_back(*context);
  };
  add(decoded_.traceparent());
  for (const std::string& further : decoded_.further_traceparents()) {
    add(further);
  }
  if (sampled.empty()) return;
  Span span;
  span.trace_id = sampled[0].trace_id;
  span.span_id = SpanId::Random();
  span.parent = sampled[0].span_id;
  span.name = "expertmesh.expert.v1.ExpertService/Forward batch";
  span.kind = SpanKind::kServer;
  span.end = absl::Now();
  span.start = span.end - timing.queued - timing.computed;
  span.links.assign(sampled.begin() + 1, sampled.end());
  const auto number = [](auto value) { return static_cast<int64_t>(value); };
  span.attributes = {
      {"expertmesh.layer", number(decoded_.layer())},
      {"expertmesh.experts", number(decoded_.expert_ids().size())},
      {"expertmesh.tokens", number(decoded_.num_tokens())},
      {"expertmesh.rows", number(decoded_.row_token().size())},
      {"expertmesh.queue_us", number(Microseconds(timing.queued))},
      {"expertmesh.compute_us", number(Microseconds(timing.computed))},
      {"expertmesh.outcome",
       absl::AsciiStrToLower(absl::StatusCodeToString(status.code()))}};
  span.status = status;
  stream_->traces()->Add(std::move(span));
}

void ForwardBatch::Finish(const absl::Status& status, WorkOutput output,
                          const WorkTiming& timing) {
  if (stream_->traces() != nullptr && !decoded_.traceparent().empty()) {
    Trace(status, timing);
  }
  decoded_.Release();
  ResultFields fields;
  fields.sequence_number = decoded_.sequence_number();
  fields.code = ToWireCode(status);
  fields.message = status.message();
  fields.queue_us = Microseconds(timing.queued);
  fields.compute_us = Microseconds(timing.computed);
  fields.credit_rows = stream_->Settle(this);
  if (status.ok()) {
    fields.dtype = dtype;
    fields.hidden_size = decoded_.hidden_size();
    fields.num_rows = static_cast<uint32_t>(num_lone_rows);
    fields.num_sums = static_cast<uint32_t>(num_sums);
  }
  const absl::Status encoded = EncodeResult(
      fields, {std::move(output.rows), std::move(output.sums)}, &reply_);
  // The stream takes this batch back, maybe before the call returns.
  const std::shared_ptr<ForwardStream> stream = stream_;
  stream->OnAnswer(this, fields.code, encoded);
}

}  // namespace expertmesh::expert
