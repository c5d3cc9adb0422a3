#pragma once

// The client's side of WeightService.

#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "expertmesh/expert/v1/weights.grpc.pb.h"
#include "services/runtime/tls_identity.h"

namespace expertmesh {

// Reads from any of several peers: one that fails, or whose bytes do not match
// their checksum, is left for the next, which goes on where it stopped. One
// that has no place for another reader is asked again for as long as it says
// so, the others meanwhile. Blocks; used by one thread at a time. Movable.
class WeightPeers {
 public:
  struct Options {
    std::vector<std::string> addresses;   // HOST:PORT
    const TlsIdentity* tls = nullptr;     // null: plain; outlives the peers
    uint64_t rate_limit_bytes_per_s = 0;  // 0: none
    absl::Duration timeout = absl::Seconds(30);  // of one answer
    // Rounds over all peers in which each fails and nothing comes.
    int attempts = 3;
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

  // Of the first peer that gives one; what it holds is checked by checksum
  // only. Errors, with the last peer's fault: UNAVAILABLE where asking again
  // may help, FAILED_PRECONDITION where every peer refuses for good.
  absl::StatusOr<expert::v1::Manifest> GetManifest(int attempts);
  absl::StatusOr<expert::v1::Manifest> GetManifest() {
    return GetManifest(options_.attempts);
  }

  // Bytes [begin, end) of a tensor, in order. Errors: the sink's; CANCELLED
  // soon after `stop` is requested; UNAVAILABLE with the last peer's fault once
  // all have failed.
  absl::Status Read(const std::string& fingerprint, const std::string& tensor,
                    uint64_t begin, uint64_t end, const Sink& sink,
                    const std::stop_token& stop);

 private:
  struct Peer {
    std::string address;
    std::unique_ptr<expert::v1::WeightService::Stub> stub;
  };

  // What is still to be read.
  struct Rest {
    expert::v1::ReadTensorRequest request;  // without its range
    uint64_t begin = 0;
    uint64_t end = 0;
  };
  // What a round over the peers has come to.
  struct Round {
    absl::Status ended;    // not OK: no peer could help
    absl::Status fault;    // of the last peer that failed; OK: none did
    bool hopeful = false;  // something came, or some peer was only busy
  };

  Round AskAll(Rest* rest, const Sink& sink, const std::stop_token& stop);
  // Reads all from one peer, or until it fails. `peer_fault` says whether a
  // failure is the peer's rather than the sink's.
  absl::Status ReadFrom(const Peer& peer, Rest* rest, const Sink& sink,
                        const std::stop_token& stop, bool* peer_fault);
  // The bytes of one request.
  absl::Status ReadRange(const Peer& peer, Rest* rest, const Sink& sink,
                         const std::stop_token& stop, bool* peer_fault);
  // Waits as long as the rate limit asks for.
  void Pace(uint64_t bytes, const std::stop_token& stop);

  Options options_;
  std::vector<Peer> peers_;
  size_t turn_ = 0;         // of peers_: whom to ask first
  absl::Duration free_at_;  // when the rate limit allows more
};

}  // namespace expertmesh
