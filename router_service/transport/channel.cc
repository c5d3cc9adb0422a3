#include "router_service/transport/channel.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <limits>

#include "services/wire/batch_codec.h"

namespace expertmesh::router {

void ExpertTls::Expect(const std::string& address, const std::string& name) {
  MutexLock lock(&mutex_);
  names_[address] = name;
}

std::string ExpertTls::NameOf(const std::string& address) const {
  MutexLock lock(&mutex_);
  const auto it = names_.find(address);
  return it == names_.end() ? "" : it->second;
}

std::shared_ptr<grpc::Channel> MakeExpertChannel(const std::string& address,
                                                 const ExpertTls* tls) {
  grpc::ChannelArguments arguments;
  const auto milliseconds = [&](const char* name, absl::Duration value) {
    arguments.SetInt(name, static_cast<int>(absl::ToInt64Milliseconds(value)));
  };
  arguments.SetMaxReceiveMessageSize(static_cast<int>(kMaxMessageBytes));
  arguments.SetMaxSendMessageSize(static_cast<int>(kMaxMessageBytes));
  arguments.SetCompressionAlgorithm(GRPC_COMPRESS_NONE);
  // A lost batch is resent by dispatch, which knows where else it can go.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt(GRPC_ARG_CLIENT_IDLE_TIMEOUT_MS,
                   std::numeric_limits<int>::max());
  // Notices a peer that vanished without closing. The services accept pings
  // down to every 5 s.
  milliseconds(GRPC_ARG_KEEPALIVE_TIME_MS, absl::Seconds(10));
  milliseconds(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, absl::Seconds(5));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  milliseconds(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kMinReconnectDelay);
  milliseconds(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectDelay);
  // How long one attempt to connect may take.
  milliseconds(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, absl::Seconds(5));
  milliseconds(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS,
               absl::Milliseconds(500));
  const TlsIdentity* const identity =
      tls == nullptr ? nullptr : tls->identity();
  if (identity != nullptr && !tls->NameOf(address).empty()) {
    arguments.SetSslTargetNameOverride(tls->NameOf(address));
  }
  return grpc::CreateCustomChannel(address, ChannelCredentials(identity),
                                   arguments);
}

}  // namespace expertmesh::router
