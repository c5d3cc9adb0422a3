#pragma once

// Lends the tensors of a checkpoint to peers.

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "expertmesh/expert/v1/weights.grpc.pb.h"
#include "services/checkpoint/checkpoint.h"
#include "services/checkpoint/tensor_index.h"

namespace expertmesh {

// Largest chunk of a tensor on the wire.
inline constexpr uint64_t kMaxTensorChunkBytes = uint64_t{1} << 20;

// Any gRPC server can register this. Reads through a mapping of its own and
// lets go of pages once they are sent. Thread-safe; outlives its calls.
class WeightServiceImpl final
    : public expert::v1::WeightService::WithCallbackMethod_GetManifest<
          expert::v1::WeightService::WithCallbackMethod_ReadTensor<
              expert::v1::WeightService::Service>> {
 public:
  struct Options {
    // Whether a tensor's bytes [0, end) are here.
    std::function<bool(absl::string_view tensor, uint64_t end)> has =
        [](absl::string_view, uint64_t) { return true; };
    int max_reads = 8;  // at a time; more are refused
  };

  // Errors: as TensorIndex::Open, for a checkpoint that changed on disk.
  static absl::StatusOr<std::unique_ptr<WeightServiceImpl>> Create(
      const Checkpoint& checkpoint, const Options& options);

  grpc::ServerUnaryReactor* GetManifest(
      grpc::CallbackServerContext* context,
      const expert::v1::GetManifestRequest* request,
      expert::v1::Manifest* response) override;
  grpc::ServerWriteReactor<expert::v1::TensorChunk>* ReadTensor(
      grpc::CallbackServerContext* context,
      const expert::v1::ReadTensorRequest* request) override;

 private:
  class ReadCall;

  WeightServiceImpl(const Checkpoint& checkpoint, const Options& options,
                    TensorIndex index);
  absl::Status FillManifest(expert::v1::Manifest* manifest) const;
  // Where the bytes asked for lie.
  absl::StatusOr<TensorIndex::Entry> Find(
      const expert::v1::ReadTensorRequest& request) const;

  const std::string directory_;
  const std::string name_;
  const std::string fingerprint_;
  const Options options_;
  const TensorIndex index_;
  std::atomic<int> reads_{0};
};

}  // namespace expertmesh
