#include "services/runtime/tls_identity.h"

#include <fcntl.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/core/stoppable_sleep.h"

namespace expertmesh {
namespace {

constexpr absl::Duration kInterval = absl::Seconds(1);
constexpr unsigned kIntervalSeconds = 1;

void LogLoaded(const TlsFiles& files, absl::Time expiry) {
  if (files.cert.empty()) return;
  const bool is_over = expiry <= absl::Now();
  Log(is_over ? LogLevel::kWarning : LogLevel::kInfo,
      is_over ? "certificate has expired" : "certificate loaded",
      {{"flag", absl::StrCat(files.flag, "-cert")},
       {"file", files.cert},
       {"expires", absl::FormatTime(expiry, absl::UTCTimeZone())}});
}

}  // namespace

// gRPC reads files by name. It must see certificate and key of one time only,
// and never a file half written.
class TlsIdentity::MemoryFile {
 public:
  static absl::StatusOr<std::unique_ptr<MemoryFile>> Make(
      const std::string& contents) {
    ASSIGN_OR_RETURN(const int fd, NewFile(contents));
    return std::unique_ptr<MemoryFile>(new MemoryFile(fd));
  }
  ~MemoryFile() { close(fd_); }

  absl::Status Replace(const std::string& contents) {
    ASSIGN_OR_RETURN(const int fd, NewFile(contents));
    const bool is_done = dup3(fd, fd_, O_CLOEXEC) >= 0;
    close(fd);
    return is_done ? absl::OkStatus() : SystemError("dup3");
  }
  std::string path() const { return absl::StrCat("/proc/self/fd/", fd_); }

 private:
  explicit MemoryFile(int fd) : fd_(fd) {}

  static absl::Status SystemError(absl::string_view call) {
    return absl::ResourceExhaustedError(
        absl::StrCat(call, ": ", std::strerror(errno)));
  }
  static absl::StatusOr<int> NewFile(const std::string& contents) {
    const int fd = memfd_create("tls", MFD_CLOEXEC);
    if (fd < 0) return SystemError("memfd_create");
    const auto size = static_cast<ssize_t>(contents.size());
    if (write(fd, contents.data(), contents.size()) == size) return fd;
    const absl::Status error = SystemError("write");
    close(fd);
    return error;
  }

  const int fd_;
};

TlsIdentity::TlsIdentity(const TlsFiles& files, OnChange on_change)
    : files_(files), on_change_(std::move(on_change)) {}

// Here, where MemoryFile is known.
TlsIdentity::~TlsIdentity() = default;

absl::StatusOr<std::unique_ptr<TlsIdentity>> TlsIdentity::Load(
    const TlsFiles& files, OnChange on_change) {
  ASSIGN_OR_RETURN(const TlsContents contents, ReadTlsFiles(files));
  auto tls = std::unique_ptr<TlsIdentity>(
      new TlsIdentity(files, std::move(on_change)));
  RETURN_IF_ERROR(tls->Publish(contents));
  const std::string identity =
      tls->identity_file_ == nullptr ? "" : tls->identity_file_->path();
  const std::string ca = tls->ca_file_ == nullptr ? "" : tls->ca_file_->path();
  tls->provider_ =
      std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          identity, identity, ca, kIntervalSeconds);
  tls->watcher_ = CallEvery(kInterval, [tls = tls.get()] { tls->Look(); });
  return tls;
}

absl::Status TlsIdentity::Publish(const TlsContents& contents) {
  const auto put = [](std::unique_ptr<MemoryFile>& file,
                      const std::string& text) -> absl::Status {
    if (text.empty()) return absl::OkStatus();
    if (file != nullptr) return file->Replace(text);
    ASSIGN_OR_RETURN(file, MemoryFile::Make(text));
    return absl::OkStatus();
  };
  // Certificate and key in one file, of which either is found by its kind.
  RETURN_IF_ERROR(put(identity_file_,
                      contents.cert.empty()
                          ? ""
                          : absl::StrCat(contents.cert, "\n", contents.key)));
  RETURN_IF_ERROR(put(ca_file_, contents.ca));
  published_ = contents;
  LogLoaded(files_, contents.expiry);
  if (on_change_) on_change_(contents.expiry);
  return absl::OkStatus();
}

void TlsIdentity::Look() {
  absl::StatusOr<TlsContents> contents = ReadTlsFiles(files_);
  absl::Status status = contents.status();
  if (status.ok() && *contents != published_) status = Publish(*contents);
  // Those between two writes are gone with the next look.
  if (!status.ok() && status.message() != last_error_) {
    Log(LogLevel::kWarning, "certificates are not renewed",
        {{"why", status.message()}});
  }
  last_error_ = std::string(status.message());
}

std::shared_ptr<grpc::ServerCredentials> TlsIdentity::ServerCredentials()
    const {
  grpc::experimental::TlsServerCredentialsOptions options(provider_);
  options.watch_identity_key_cert_pairs();
  if (ca_file_ != nullptr) {
    options.watch_root_certs();
    options.set_cert_request_type(
        GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> TlsIdentity::ChannelCredentials()
    const {
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(provider_);
  if (identity_file_ != nullptr) options.watch_identity_key_cert_pairs();
  if (ca_file_ != nullptr) options.watch_root_certs();
  return grpc::experimental::TlsCredentials(options);
}

std::shared_ptr<grpc::ServerCredentials> ServerCredentials(
    const TlsIdentity* identity) {
  return identity == nullptr ? grpc::InsecureServerCredentials()
                             : identity->ServerCredentials();
}

std::shared_ptr<grpc::ChannelCredentials> ChannelCredentials(
    const TlsIdentity* identity) {
  return identity == nullptr ? grpc::InsecureChannelCredentials()
                             : identity->ChannelCredentials();
}

}  // namespace expertmesh
