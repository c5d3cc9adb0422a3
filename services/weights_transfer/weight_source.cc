#include "services/weights_transfer/weight_source.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/checkpoint/checkpoint.h"
#include "services/checkpoint/required_tensors.h"
#include "services/core/clock.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

constexpr absl::Duration kAskAgain = absl::Seconds(2);
constexpr absl::Duration kTellAgain = absl::Seconds(30);

// Of the checkpoint that the peers have, or the only one in the cache.
absl::StatusOr<std::unique_ptr<WeightCache>> OpenCache(
    const WeightSource::Options& options, WeightPeers& peers) {
  const Clock& clock = *Clock::Real();
  const absl::Duration give_up = clock.Now() + options.patience;
  absl::Duration tell = absl::ZeroDuration();
  for (bool is_first = true;; is_first = false) {
    const absl::StatusOr<expert::v1::Manifest> manifest =
        is_first ? peers.GetManifest() : peers.GetManifest(/*attempts=*/1);
    if (manifest.ok()) return WeightCache::Create(options.cache, *manifest);
    auto cache = WeightCache::OpenOnly(options.cache);
    if (cache.ok()) {
      Log(LogLevel::kWarning, "no peer answers; weights come from the cache",
          {{"cache", (*cache)->directory()},
           {"reason", manifest.status().message()}});
      return cache;
    }
    const absl::Duration now = clock.Now();
    if (now >= give_up || !absl::IsUnavailable(manifest.status())) {
      return manifest.status();
    }
    if (now >= tell) {
      Log(LogLevel::kWarning, "no peer answers; asking again",
          {{"reason", manifest.status().message()},
           {"give_up_seconds", absl::ToInt64Seconds(give_up - now)}});
      tell = now + kTellAgain;
    }
    absl::SleepFor(std::min(kAskAgain, give_up - now));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightSource>> WeightSource::Open(
    const Options& options) {
  WeightPeers peers(options.peers);
  ASSIGN_OR_RETURN(std::unique_ptr<WeightCache> cache,
                   OpenCache(options, peers));
  std::unique_ptr<WeightSource> source(
      new WeightSource(std::move(peers), std::move(cache)));
  RETURN_IF_ERROR(source->CheckFingerprint());
  return source;
}

WeightSource::WeightSource(WeightPeers peers,
                           std::unique_ptr<WeightCache> cache)
    : peers_(std::move(peers)), cache_(std::move(cache)) {}

absl::Status WeightSource::CheckFingerprint() {
  {
    // Opened for its configuration: holes make another fingerprint.
    ASSIGN_OR_RETURN(const auto hollow,
                     Checkpoint::Open(directory(), Checkpoint::Data::kPartial));
    RETURN_IF_ERROR(VisitSampledTensors(
        hollow->config(), hollow->family(),
        [this](const RequiredTensor& tensor) {
          return FetchFirst(tensor.name, kFingerprintSampleBytes, {});
        }));
  }
  ASSIGN_OR_RETURN(const auto checkpoint,
                   Checkpoint::Open(directory(), Checkpoint::Data::kPartial));
  if (checkpoint->fingerprint() == cache_->fingerprint()) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      directory(), ": the peers' checkpoint has fingerprint ",
      checkpoint->fingerprint(), " instead of ", cache_->fingerprint()));
}

absl::Status WeightSource::Fetch(const std::string& tensor,
                                 const std::stop_token& stop) {
  return FetchFirst(tensor, std::numeric_limits<uint64_t>::max(), stop);
}

absl::Status WeightSource::FetchFirst(const std::string& tensor, uint64_t bytes,
                                      const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const uint64_t size, cache_->TensorBytes(tensor));
  const uint64_t end = std::min(bytes, size);
  if (Has(tensor, end)) return absl::OkStatus();
  MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const WeightCache::Lock held, cache_->Acquire(tensor, stop));
  ASSIGN_OR_RETURN(const uint64_t have, cache_->Have(tensor));
  if (have < end) {
    RETURN_IF_ERROR(peers_.Read(
        cache_->fingerprint(), tensor, have, end,
        [&](const WeightPeers::Chunk& chunk) {
          pulled_bytes_.fetch_add(chunk.data.size());
          return cache_->Write(tensor, chunk.offset, chunk.data, chunk.crc32c);
        },
        stop));
  }
  MutexLock have_lock(&have_mutex_);
  have_[tensor] = std::max(have, end);
  return absl::OkStatus();
}

bool WeightSource::Has(absl::string_view tensor, uint64_t end) const {
  MutexLock lock(&have_mutex_);
  const auto found = have_.find(tensor);
  return found != have_.end() && found->second >= end;
}

}  // namespace expertmesh
