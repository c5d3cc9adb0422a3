#include "services/weights_transfer/weight_peers.h"

#include <grpcpp/create_channel.h>

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/core/clock.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/weights_transfer/crc32c.h"
#include "services/weights_transfer/weight_service_impl.h"
#include "services/wire/batch_codec.h"
#include "services/wire/status_codec.h"

namespace expertmesh {
namespace {

using expert::v1::Manifest;
using expert::v1::ReadTensorRequest;
using expert::v1::TensorChunk;

// Asked for at a time, so that each answer has a deadline that fits it.
constexpr uint64_t kMaxRangeBytes = 8 * kMaxTensorChunkBytes;
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(200);

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(kMaxMessageBytes));
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                   arguments);
}

void SetTimeout(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
}

absl::Status CheckManifest(const Manifest& manifest) {
  for (const expert::v1::WholeFile& file : manifest.files()) {
    if (Crc32c(file.contents()) != file.crc32c()) {
      return absl::DataLossError("the manifest's checksums are wrong");
    }
  }
  for (const expert::v1::WeightFile& file : manifest.weight_files()) {
    if (Crc32c(file.header()) != file.crc32c()) {
      return absl::DataLossError("the manifest's checksums are wrong");
    }
  }
  return absl::OkStatus();
}

// The chunk must go on where the last one ended and stay within the request.
absl::Status CheckChunk(const TensorChunk& chunk, uint64_t begin,
                        uint64_t end) {
  const uint64_t size = chunk.data().size();
  if (chunk.offset() != begin || size == 0 || size > kMaxTensorChunkBytes ||
      size > end - begin) {
    return absl::DataLossError("sent other bytes than were asked for");
  }
  if (Crc32c(chunk.data()) != chunk.crc32c()) {
    return absl::DataLossError("sent bytes that do not match their checksum");
  }
  return absl::OkStatus();
}

absl::Status PeerError(const std::string& address, const absl::Status& fault) {
  return absl::UnavailableError(
      absl::StrCat("weights from ", address, ": ", fault.message()));
}

}  // namespace

WeightPeers::WeightPeers(const Options& options) : options_(options) {
  for (const std::string& address : options.addresses) {
    peers_.push_back(
        {address, expert::v1::WeightService::NewStub(Connect(address))});
  }
}

absl::StatusOr<Manifest> WeightPeers::GetManifest() {
  absl::Status fault = absl::UnavailableError("no peers to get weights from");
  for (int attempt = 0; attempt < options_.attempts; ++attempt) {
    if (attempt > 0) absl::SleepFor(kFirstBackoff * attempt);
    for (const Peer& peer : peers_) {
      grpc::ClientContext context;
      SetTimeout(context, options_.timeout);
      Manifest manifest;
      absl::Status status =
          FromGrpcStatus(peer.stub->GetManifest(&context, {}, &manifest));
      if (status.ok()) status = CheckManifest(manifest);
      if (status.ok()) return manifest;
      fault = PeerError(peer.address, status);
    }
  }
  return fault;
}

absl::Status WeightPeers::Read(const std::string& fingerprint,
                               const std::string& tensor, uint64_t begin,
                               uint64_t end, const Sink& sink) {
  absl::Status fault = absl::UnavailableError("no peers to get weights from");
  ReadTensorRequest request;
  request.set_checkpoint_fingerprint(fingerprint);
  request.set_tensor(tensor);
  size_t failures = 0;  // since the last progress
  const size_t max_failures = options_.attempts * peers_.size();
  const auto cancelled = [this] {
    MutexLock lock(&mutex_);
    return cancelled_;
  };
  while (begin < end && failures < max_failures) {
    const Peer& peer = peers_[turn_];
    request.set_offset(begin);
    request.set_length(std::min(kMaxRangeBytes, end - begin));
    const uint64_t before = begin;
    bool peer_fault = false;
    const absl::Status status =
        ReadFrom(peer, request, &begin, sink, &peer_fault);
    if (status.ok()) {
      failures = 0;
      continue;
    }
    if (!peer_fault) return status;
    if (cancelled())
      return absl::CancelledError("pulling weights was given up");
    fault = PeerError(peer.address, status);
    Log(LogLevel::kWarning, "a peer failed to give weights",
        {{"peer", peer.address},
         {"tensor", tensor},
         {"reason", status.message()}});
    failures = before < begin ? 1 : failures + 1;
    turn_ = (turn_ + 1) % peers_.size();
    if (failures % peers_.size() == 0 && failures < max_failures) {
      absl::SleepFor(kFirstBackoff * failures);
    }
  }
  return begin == end ? absl::OkStatus() : fault;
}

absl::Status WeightPeers::ReadFrom(const Peer& peer,
                                   const ReadTensorRequest& request,
                                   uint64_t* begin, const Sink& sink,
                                   bool* peer_fault) {
  const uint64_t end = request.offset() + request.length();
  absl::Duration timeout = options_.timeout;
  if (options_.rate_limit_bytes_per_s > 0) {
    timeout +=
        absl::Seconds(static_cast<double>(request.length()) /
                      static_cast<double>(options_.rate_limit_bytes_per_s));
  }
  grpc::ClientContext context;
  SetTimeout(context, timeout);
  SetCurrent(&context);
  const auto clear = absl::MakeCleanup([this] { SetCurrent(nullptr); });
  const auto call = peer.stub->ReadTensor(&context, request);
  TensorChunk chunk;
  absl::Status status;
  *peer_fault = true;
  while (status.ok() && call->Read(&chunk)) {
    status = CheckChunk(chunk, *begin, end);
    if (!status.ok()) break;
    Pace(chunk.data().size());
    status = sink({chunk.offset(), chunk.data(), chunk.crc32c()});
    if (status.ok()) {
      *begin += chunk.data().size();
    } else {
      *peer_fault = false;
    }
  }
  if (!status.ok()) context.TryCancel();
  const absl::Status ended = FromGrpcStatus(call->Finish());
  if (!status.ok()) return status;
  RETURN_IF_ERROR(ended);
  if (*begin < end) return absl::DataLossError("sent too few bytes");
  return absl::OkStatus();
}

void WeightPeers::Cancel() {
  MutexLock lock(&mutex_);
  cancelled_ = true;
  cancel_.NotifyAll();
  if (current_ != nullptr) current_->TryCancel();
}

void WeightPeers::SetCurrent(grpc::ClientContext* context) {
  MutexLock lock(&mutex_);
  current_ = context;
  if (cancelled_ && context != nullptr) context->TryCancel();
}

void WeightPeers::Pace(uint64_t bytes) {
  if (options_.rate_limit_bytes_per_s == 0) return;
  const absl::Duration now = Clock::Real()->Now();
  free_at_ =
      std::max(free_at_, now) +
      absl::Seconds(static_cast<double>(bytes) /
                    static_cast<double>(options_.rate_limit_bytes_per_s));
  MutexLock lock(&mutex_);
  cancel_.WaitFor(
      lock, free_at_ - now,
      [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return cancelled_; });
}

}  // namespace expertmesh
