#pragma once

// One side of TLS connections: who it is and whom it believes.

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/core/mutex.h"
#include "services/runtime/tls_files.h"

namespace expertmesh {

// Reads its files again every second: connections made from then on use what
// they hold now. Files that are no good, such as a certificate whose new key
// has not been written yet, change nothing and are logged once. Thread-safe.
// Credentials keep what they need, but are not renewed once it is gone.
class TlsIdentity {
 public:
  // Called at first and after each change with the certificate's end.
  using OnChange = std::function<void(absl::Time expiry)>;

  // Errors: INVALID_ARGUMENT (ReadTlsFiles), RESOURCE_EXHAUSTED where the
  // system has no memory file.
  static absl::StatusOr<std::unique_ptr<TlsIdentity>> Load(
      const TlsFiles& files, OnChange on_change = nullptr);
  ~TlsIdentity();

  // For a server, which needs cert and key. With a ca, clients need a
  // certificate that it signed.
  std::shared_ptr<grpc::ServerCredentials> ServerCredentials() const;
  // For a client, which believes certificates of the ca for the name that it
  // asked for, and shows its own if it has one.
  std::shared_ptr<grpc::ChannelCredentials> ChannelCredentials() const;

 private:
  // A file of this process alone, which is replaced as a whole.
  class MemoryFile;

  TlsIdentity(const TlsFiles& files, OnChange on_change);
  absl::Status Publish(const TlsContents& contents);
  void Look();

  const TlsFiles files_;
  const OnChange on_change_;
  TlsContents published_;   // of the watching thread, once that runs
  std::string last_error_;  // likewise
  std::unique_ptr<MemoryFile> identity_file_;
  std::unique_ptr<MemoryFile> ca_file_;
  std::shared_ptr<grpc::experimental::CertificateProviderInterface> provider_;
  std::jthread watcher_;
};

// Credentials of `identity`, or plain ones where there is none.
std::shared_ptr<grpc::ServerCredentials> ServerCredentials(
    const TlsIdentity* identity);
std::shared_ptr<grpc::ChannelCredentials> ChannelCredentials(
    const TlsIdentity* identity);

}  // namespace expertmesh
