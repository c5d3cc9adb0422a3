#include "services/runtime/address.h"

#include <errno.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

absl::Status BadAddress(absl::string_view text, absl::string_view reason) {
  return absl::InvalidArgumentError(
      absl::StrCat("address '", text, "' is not HOST:PORT: ", reason));
}

using AddressInfo = std::unique_ptr<addrinfo, void (*)(addrinfo*)>;

absl::StatusOr<AddressInfo> Lookup(const HostPort& address, int flags) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | flags;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(
      address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot resolve host '", address.host, "': ", gai_strerror(error)));
  }
  return AddressInfo(found, freeaddrinfo);
}

}  // namespace

std::string HostPort::ToString() const {
  const bool is_ipv6 = host.find(':') != std::string::npos;
  return is_ipv6 ? absl::StrCat("[", host, "]:", port)
                 : absl::StrCat(host, ":", port);
}

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) {
    return BadAddress(text, "the port is missing");
  }
  absl::string_view host = text.substr(0, colon);
  const absl::string_view port_text = text.substr(colon + 1);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != absl::string_view::npos) {
    return BadAddress(text, "an IPv6 address needs brackets, as in [::1]:80");
  }
  if (host.empty()) return BadAddress(text, "the host is missing");
  if (host.find_first_of("[]/ ") != absl::string_view::npos) {
    return BadAddress(text, "the host holds a character no host name has");
  }
  HostPort result{std::string(host), 0};
  const bool digits_only =
      !port_text.empty() &&
      port_text.find_first_not_of("0123456789") == absl::string_view::npos;
  if (!digits_only || !absl::SimpleAtoi(port_text, &result.port) ||
      result.port > 65535) {
    return BadAddress(text, "the port is no number from 0 to 65535");
  }
  return result;
}

HostPort DefaultAdminAddress(const HostPort& client) {
  const int port = client.port + 2;
  return {client.host, client.port == 0 || port > 65535 ? 0 : port};
}

absl::StatusOr<HostPort> ResolveListenAddress(absl::string_view text) {
  ASSIGN_OR_RETURN(HostPort address, ParseHostPort(text));
  ASSIGN_OR_RETURN(const AddressInfo info, Lookup(address, 0));
  char numeric[NI_MAXHOST];
  const int error = getnameinfo(info->ai_addr, info->ai_addrlen, numeric,
                                sizeof(numeric), nullptr, 0, NI_NUMERICHOST);
  if (error != 0) return BadAddress(text, gai_strerror(error));
  address.host = numeric;
  return address;
}

absl::Status ListenError(const HostPort& address) {
  std::string reason = "the server refused it";
  absl::StatusOr<AddressInfo> info = Lookup(address, AI_NUMERICHOST);
  if (!info.ok()) {
    reason = std::string(info.status().message());
  } else {
    const addrinfo& target = **info;
    const int fd = socket(target.ai_family, target.ai_socktype, 0);
    const int reuse = 1;
    // As servers do, so that a port in TIME_WAIT is no false alarm.
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse));
    if (fd < 0 || bind(fd, target.ai_addr, target.ai_addrlen) != 0 ||
        listen(fd, 1) != 0) {
      reason = std::strerror(errno);
    }
    if (fd >= 0) close(fd);
  }
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", address.ToString(), ": ", reason));
}

void TouchListener(const HostPort& address) {
  const absl::StatusOr<AddressInfo> info = Lookup(address, AI_NUMERICHOST);
  if (!info.ok()) return;
  const addrinfo& target = **info;
  const int fd = socket(target.ai_family, target.ai_socktype, 0);
  if (fd < 0) return;
  // The outcome does not matter: a listener that is gone needs no touch.
  [[maybe_unused]] const int ignored =
      connect(fd, target.ai_addr, target.ai_addrlen);
  close(fd);
}

}  // namespace expertmesh
