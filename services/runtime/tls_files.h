#pragma once

// Certificates and keys in PEM files, looked at before anything rests on them.

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace expertmesh {

// One side's files. `flag` is how messages call them: "--mesh-tls" for
// --mesh-tls-cert, --mesh-tls-key and --mesh-tls-ca.
struct TlsFiles {
  std::string flag;
  std::string cert;  // chain, the side's own certificate first
  std::string key;
  std::string ca;  // whose certificates are believed

  bool any() const { return !cert.empty() || !key.empty() || !ca.empty(); }
};

// What they held, in PEM; of files that are not named, nothing.
struct TlsContents {
  std::string cert;
  std::string key;
  std::string ca;
  // When the first of the chain ends to count; infinite without one.
  absl::Time expiry = absl::InfiniteFuture();

  friend bool operator==(const TlsContents&, const TlsContents&) = default;
};

// Errors: INVALID_ARGUMENT, one line that names the flag: one of cert and key
// without the other, a file that cannot be read or is no PEM, a key that does
// not belong to the certificate. An expired certificate is no error.
absl::StatusOr<TlsContents> ReadTlsFiles(const TlsFiles& files);

// Of connections between services either all three files are given or none.
// Errors: INVALID_ARGUMENT naming the flags.
absl::Status CheckMeshTls(const TlsFiles& files);

}  // namespace expertmesh
