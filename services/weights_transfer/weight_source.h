#pragma once

// A checkpoint that is pulled from peers as far as it is needed.

#include <atomic>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/core/mutex.h"
#include "services/weights_transfer/weight_cache.h"
#include "services/weights_transfer/weight_peers.h"

namespace expertmesh {

// Lays out a folder that Checkpoint::Open takes, whose fingerprint is that of
// the peers' checkpoint, and fills in tensors when they are asked for. Where no
// peer answers and the cache holds one checkpoint, that is taken: a restart
// needs nobody. Thread-safe.
class WeightSource {
 public:
  struct Options {
    WeightPeers::Options peers;
    std::string cache;  // folder for checkpoints, by fingerprint
    // How long Open asks again where no peer answers and the cache cannot help:
    // peers may start at the same time as this one.
    absl::Duration patience = absl::ZeroDuration();
  };

  // Pulls what the fingerprint is made from, and checks it. Blocks.
  // Errors: UNAVAILABLE with the last peer's fault or the file that cannot be
  // written; FAILED_PRECONDITION where peers refuse, or for a checkpoint that
  // is not what it says.
  static absl::StatusOr<std::unique_ptr<WeightSource>> Open(
      const Options& options);

  // For Checkpoint::Open, as partial.
  const std::string& directory() const { return cache_->directory(); }

  // Blocks until the whole tensor is in the folder. Errors: as Open, NOT_FOUND
  // for a tensor that the checkpoint lacks, CANCELLED soon after `stop` is
  // requested.
  absl::Status Fetch(const std::string& tensor,
                     const std::stop_token& stop = {});

  // Whether the tensor's bytes [0, end) are known to be in the folder.
  bool Has(absl::string_view tensor, uint64_t end) const;

  // Pulled from peers so far.
  uint64_t pulled_bytes() const { return pulled_bytes_.load(); }

 private:
  WeightSource(WeightPeers peers, std::unique_ptr<WeightCache> cache);
  absl::Status CheckFingerprint();
  // The tensor's first `bytes`, or all of it where it is shorter.
  absl::Status FetchFirst(const std::string& tensor, uint64_t bytes,
                          const std::stop_token& stop);

  mutable Mutex have_mutex_;
  absl::flat_hash_map<std::string, uint64_t> have_ ABSL_GUARDED_BY(have_mutex_);
  Mutex mutex_;        // held while a tensor is pulled
  WeightPeers peers_;  // reads under mutex_
  const std::unique_ptr<WeightCache> cache_;
  std::atomic<uint64_t> pulled_bytes_{0};
};

}  // namespace expertmesh
