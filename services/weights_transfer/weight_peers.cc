#include "services/weights_transfer/weight_peers.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/core/clock.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/core/stoppable_sleep.h"
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

std::shared_ptr<grpc::Channel> Connect(const std::string& address,
                                       const TlsIdentity* tls) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(kMaxMessageBytes));
  // A peer that starts is to be found soon, not after gRPC's two minutes.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 1000);
  return grpc::CreateCustomChannel(address, ChannelCredentials(tls), arguments);
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

void LogBusy(const std::string& address, const absl::Status& status) {
  static LogRateLimit limit({.per_second = 0.1});
  Log(limit, LogLevel::kInfo, "a peer is too busy to give weights",
      {{"peer", address}, {"reason", status.message()}});
}

// Refuses what it will refuse tomorrow.
bool IsFinal(const absl::Status& status) {
  return absl::IsUnimplemented(status) || absl::IsPermissionDenied(status) ||
         absl::IsUnauthenticated(status) || absl::IsFailedPrecondition(status);
}

absl::Status PeerError(const std::string& address, const absl::Status& fault) {
  return absl::UnavailableError(
      absl::StrCat("weights from ", address, ": ", fault.message()));
}

}  // namespace

WeightPeers::WeightPeers(const Options& options) : options_(options) {
  for (const std::string& address : options.addresses) {
    peers_.push_back({address, expert::v1::WeightService::NewStub(
                                   Connect(address, options.tls))});
  }
}

absl::StatusOr<Manifest> WeightPeers::GetManifest(int attempts) {
  absl::Status fault = absl::UnavailableError("no peers to get weights from");
  for (int attempt = 0; attempt < attempts; ++attempt) {
    if (attempt > 0) absl::SleepFor(kFirstBackoff * attempt);
    bool hopeful = false;
    for (const Peer& peer : peers_) {
      grpc::ClientContext context;
      SetTimeout(context, options_.timeout);
      Manifest manifest;
      absl::Status status =
          FromGrpcStatus(peer.stub->GetManifest(&context, {}, &manifest));
      if (status.ok()) status = CheckManifest(manifest);
      if (status.ok()) return manifest;
      hopeful |= !IsFinal(status);
      fault = PeerError(peer.address, status);
    }
    if (!hopeful) return absl::FailedPreconditionError(fault.message());
  }
  return fault;
}

absl::Status WeightPeers::Read(const std::string& fingerprint,
                               const std::string& tensor, uint64_t begin,
                               uint64_t end, const Sink& sink,
                               const std::stop_token& stop) {
  absl::Status fault = absl::UnavailableError("no peers to get weights from");
  Rest rest;
  rest.begin = begin;
  rest.end = end;
  rest.request.set_checkpoint_fingerprint(fingerprint);
  rest.request.set_tensor(tensor);
  int failed_rounds = 0;
  while (rest.begin < rest.end && !peers_.empty()) {
    Round round = AskAll(&rest, sink, stop);
    RETURN_IF_ERROR(round.ended);
    if (!round.fault.ok()) fault = std::move(round.fault);
    failed_rounds = round.hopeful ? 0 : failed_rounds + 1;
    if (failed_rounds >= options_.attempts) break;
    if (rest.begin < rest.end) {
      SleepUnlessStopped(kFirstBackoff * (1 + failed_rounds), stop);
    }
  }
  return rest.begin == rest.end ? absl::OkStatus() : fault;
}

WeightPeers::Round WeightPeers::AskAll(Rest* rest, const Sink& sink,
                                       const std::stop_token& stop) {
  Round round;
  const uint64_t before = rest->begin;
  for (size_t i = 0; i < peers_.size() && rest->begin < rest->end; ++i) {
    const Peer& peer = peers_[turn_];
    bool peer_fault = false;
    const absl::Status status = ReadFrom(peer, rest, sink, stop, &peer_fault);
    if (status.ok()) break;
    if (!peer_fault) {
      round.ended = status;
      return round;
    }
    if (stop.stop_requested()) {
      round.ended = absl::CancelledError("pulling weights was given up");
      return round;
    }
    turn_ = (turn_ + 1) % peers_.size();
    if (absl::IsResourceExhausted(status)) {
      round.hopeful = true;
      LogBusy(peer.address, status);
      continue;
    }
    round.fault = PeerError(peer.address, status);
    Log(LogLevel::kWarning, "a peer failed to give weights",
        {{"peer", peer.address},
         {"tensor", rest->request.tensor()},
         {"reason", status.message()}});
  }
  round.hopeful |= rest->begin > before;
  return round;
}

absl::Status WeightPeers::ReadFrom(const Peer& peer, Rest* rest,
                                   const Sink& sink,
                                   const std::stop_token& stop,
                                   bool* peer_fault) {
  while (rest->begin < rest->end) {
    RETURN_IF_ERROR(ReadRange(peer, rest, sink, stop, peer_fault));
  }
  return absl::OkStatus();
}

absl::Status WeightPeers::ReadRange(const Peer& peer, Rest* rest,
                                    const Sink& sink,
                                    const std::stop_token& stop,
                                    bool* peer_fault) {
  const uint64_t length = std::min(kMaxRangeBytes, rest->end - rest->begin);
  const uint64_t end = rest->begin + length;
  rest->request.set_offset(rest->begin);
  rest->request.set_length(length);
  absl::Duration timeout = options_.timeout;
  if (options_.rate_limit_bytes_per_s > 0) {
    timeout +=
        absl::Seconds(static_cast<double>(length) /
                      static_cast<double>(options_.rate_limit_bytes_per_s));
  }
  grpc::ClientContext context;
  SetTimeout(context, timeout);
  const auto call = peer.stub->ReadTensor(&context, rest->request);
  const std::stop_callback on_stop(stop, [&context] { context.TryCancel(); });
  TensorChunk chunk;
  absl::Status status;
  *peer_fault = true;
  while (status.ok() && call->Read(&chunk)) {
    status = CheckChunk(chunk, rest->begin, end);
    if (!status.ok()) break;
    Pace(chunk.data().size(), stop);
    status = sink({chunk.offset(), chunk.data(), chunk.crc32c()});
    if (status.ok()) {
      rest->begin += chunk.data().size();
    } else {
      *peer_fault = false;
    }
  }
  if (!status.ok()) context.TryCancel();
  const absl::Status ended = FromGrpcStatus(call->Finish());
  if (!status.ok()) return status;
  RETURN_IF_ERROR(ended);
  if (rest->begin < end) return absl::DataLossError("sent too few bytes");
  return absl::OkStatus();
}

void WeightPeers::Pace(uint64_t bytes, const std::stop_token& stop) {
  if (options_.rate_limit_bytes_per_s == 0) return;
  const absl::Duration now = Clock::Real()->Now();
  free_at_ =
      std::max(free_at_, now) +
      absl::Seconds(static_cast<double>(bytes) /
                    static_cast<double>(options_.rate_limit_bytes_per_s));
  SleepUnlessStopped(free_at_ - now, stop);
}

}  // namespace expertmesh
