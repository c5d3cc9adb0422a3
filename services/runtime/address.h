#pragma once

// "HOST:PORT" as every flag and ready file spells it.

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

struct HostPort {
  std::string host;  // without brackets: "127.0.0.1", "::1", "example.org"
  int port = 0;      // 0 when listening: any free port

  // "127.0.0.1:41001", "[::1]:41001".
  std::string ToString() const;
};

// Errors: INVALID_ARGUMENT naming the text and what is wrong with it; an IPv6
// address needs brackets, a host may not be empty.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);

// Where operators reach a router whose clients reach it at `client`, unless it
// is told otherwise: two ports above, and any (0) where that is not known yet.
HostPort DefaultAdminAddress(const HostPort& client);

// As ParseHostPort, with the host resolved to its first numeric address, which
// servers listen on. Errors: also INVALID_ARGUMENT for a name that does not
// resolve.
absl::StatusOr<HostPort> ResolveListenAddress(absl::string_view text);

// Why a server could not listen on a numeric address, for libraries that only
// say that it failed: binds a socket of its own to it and reports the system's
// reason. Never OK.
absl::Status ListenError(const HostPort& address);

// Connects to a listener at a numeric address of this machine, and hangs up.
void TouchListener(const HostPort& address);

}  // namespace expertmesh
