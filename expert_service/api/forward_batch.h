#pragma once

// One message of a Forward stream, or its link, on its way through the service
// (stop 6a).

#include <grpcpp/support/byte_buffer.h>

#include <memory>

#include "absl/status/status.h"
#include "expert_service/api/byte_budget.h"
#include "expert_service/batching/expert_work.h"
#include "expertmesh/expert/v1/expert.pb.h"
#include "services/wire/batch_codec.h"
#include "services/wire/payload_pool.h"

namespace expertmesh::expert {

class ForwardStream;

// What batches are checked against.
struct ModelShape {
  uint32_t num_layers = 0;
  uint32_t hidden_size = 0;
};

// Decodes a batch, is the work the executor sees, and encodes the answer. Owned
// and reused by its stream; keeps the stream alive while it is under way.
class ForwardBatch final : public ExpertWork {
 public:
  // Errors: INVALID_ARGUMENT: these bytes are no ExpertBatch.
  absl::Status Decode(const grpc::ByteBuffer& message);
  // Checks the decoded batch and fills in the fields of ExpertWork.
  // Errors: INVALID_ARGUMENT naming the field.
  absl::Status Prepare(const ModelShape& shape);
  // Takes what this batch and its answer hold in memory out of the budget,
  // until GiveBytes. Errors: RESOURCE_EXHAUSTED.
  absl::Status TakeBytes(ByteBudget* budget);
  void GiveBytes(ByteBudget* budget);

  void CopyRows(int64_t first, int64_t last, std::byte* out) const override;
  // Encodes the answer and hands it to the stream.
  void Finish(const absl::Status& status, WorkOutput output,
              const WorkTiming& timing) override;

  // Ready to be written after Finish.
  const grpc::ByteBuffer& reply() const { return reply_; }

 private:
  friend class ForwardStream;

  // Records a span for the traced requests that have rows in the batch.
  void Trace(const absl::Status& status, const WorkTiming& timing) const;

  DecodedBatch decoded_;
  uint64_t message_bytes_ = 0;
  uint64_t taken_bytes_ = 0;
  grpc::ByteBuffer reply_;
  bool came_by_link_ = false;
  std::shared_ptr<ForwardStream> stream_;  // null while it waits for reuse
  ForwardBatch* next_reply_ = nullptr;
};

}  // namespace expertmesh::expert
