#pragma once

// Bearer tokens (RFC 6750) that clients of a server must show.

#include <grpcpp/security/auth_metadata_processor.h>

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/core/mutex.h"

namespace expertmesh {

// The tokens of a file: one on each line, but for empty lines and those that
// begin with "#". The file is read again every second, and counts once it has
// been the same twice; one that cannot be read, or holds no token, changes
// nothing and is logged once. What is kept are digests, compared in a time that
// says nothing of them. Thread-safe.
class BearerTokens {
 public:
  // Errors: INVALID_ARGUMENT naming `flag` and the file: it cannot be read,
  // holds no token, or one with characters that headers cannot have.
  static absl::StatusOr<std::unique_ptr<BearerTokens>> Load(
      const std::string& flag, const std::string& path);
  ~BearerTokens();

  bool Has(absl::string_view token) const;

  // Refuses calls without one of the tokens with UNAUTHENTICATED, but for those
  // that ask for health. `on_refused` may be empty. For credentials with TLS;
  // keeps `this`, which must outlive the server.
  std::shared_ptr<grpc::AuthMetadataProcessor> Guard(
      std::function<void()> on_refused) const;

 private:
  using Digest = std::array<unsigned char, 32>;  // SHA-256

  BearerTokens(const std::string& flag, const std::string& path)
      : flag_(flag), path_(path) {}
  absl::StatusOr<std::vector<Digest>> Read() const;
  static Digest DigestOf(absl::string_view token);
  void Look();

  const std::string flag_;
  const std::string path_;
  mutable Mutex mutex_;
  std::vector<Digest> digests_ ABSL_GUARDED_BY(mutex_);
  std::vector<Digest> seen_;  // of the watching thread
  std::string last_error_;    // likewise
  std::jthread watcher_;
};

}  // namespace expertmesh
