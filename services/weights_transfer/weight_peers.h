#pragma once

// The client's side of WeightService.

#include <grpcpp/client_context.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "expertmesh/expert/v1/weights.grpc.pb.h"
#include "services/core/mutex.h"

namespace expertmesh {

// Reads from any of several peers: one that fails, or whose bytes do not match
// their checksum, is left for the next, which goes on where it stopped. Blocks;
// used by one thread at a time,
// except Cancel.
class WeightPeers {
 public:
  struct Options {
    std::vector<std::string> addresses;          // HOST:PORT
    uint64_t rate_limit_bytes_per_s = 0;         // 0: none
    absl::Duration timeout = absl::Seconds(30);  // of one answer
    int attempts = 3;  // rounds over all peers without progress
  };
  // A chunk whose checksum was right.
  struct Chunk {
    uint64_t offset = 0;  // in the tensor
    absl::string_view data;
    uint32_t crc32c = 0;
  };
  // A status other than OK ends the reading and is returned.
  using Sink = std::function<absl::Status(const Chunk&)>;

  explicit WeightPeers(const Options& options);

  // From any thread: ends what is being read, and what comes later, with
  // CANCELLED.
  void Cancel();

  // Of the first peer that gives one; what it holds is checked by checksum
  // only. Errors: UNAVAILABLE with the last peer's fault.
  absl::StatusOr<expert::v1::Manifest> GetManifest();

  // Bytes [begin, end) of a tensor, in order. Errors: the sink's; CANCELLED;
  // UNAVAILABLE with the last peer's fault once all have failed.
  absl::Status Read(const std::string& fingerprint, const std::string& tensor,
                    uint64_t begin, uint64_t end, const Sink& sink);

 private:
  struct Peer {
    std::string address;
    std::unique_ptr<expert::v1::WeightService::Stub> stub;
  };

  // Reads from one peer, moving *begin on. `peer_fault` says whether a failure
  // is the peer's rather than the sink's.
  absl::Status ReadFrom(const Peer& peer,
                        const expert::v1::ReadTensorRequest& request,
                        uint64_t* begin, const Sink& sink, bool* peer_fault);
  // The call that Cancel is to end; null: none.
  void SetCurrent(grpc::ClientContext* context);
  // Waits as long as the rate limit asks for.
  void Pace(uint64_t bytes);

  const Options options_;
  std::vector<Peer> peers_;
  size_t turn_ = 0;  // of peers_: whom to ask first
  Mutex mutex_;
  CondVar cancel_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* current_ ABSL_GUARDED_BY(mutex_) = nullptr;
  absl::Duration free_at_;  // when the rate limit allows more
};

}  // namespace expertmesh
