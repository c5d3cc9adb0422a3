#include "router_service/transport/address_file.h"

#include <errno.h>

#include <cstring>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "services/runtime/address.h"

namespace expertmesh::router {
namespace {

constexpr std::streamsize kMaxBytes = 1 << 20;

// The address of one line, in the form that all have.
absl::StatusOr<std::string> ParseLine(absl::string_view line) {
  const absl::StatusOr<HostPort> address = ParseHostPort(line);
  if (!address.ok()) return address.status();
  if (address->port != 0) return address->ToString();
  return absl::InvalidArgumentError(
      absl::StrCat("expert service ", line, " needs a port"));
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path);
  std::string text(kMaxBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  // A folder opens, but does not read.
  if (!file.is_open() || file.bad()) {
    return absl::UnavailableError(
        absl::StrCat("cannot read it: ", std::strerror(errno)));
  }
  if (!file.eof()) {
    return absl::UnavailableError("it is larger than a MiB");
  }
  text.resize(file.gcount());
  return text;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseAddressFile(
    absl::string_view text) {
  std::vector<std::string> addresses;
  bool says_none = false;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || absl::StartsWith(line, "#")) continue;
    if (line == "none") {
      says_none = true;
      continue;
    }
    absl::StatusOr<std::string> address = ParseLine(line);
    if (!address.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": ", address.status().message()));
    }
    addresses.push_back(*std::move(address));
  }
  if (!addresses.empty() || says_none) return addresses;
  return absl::NotFoundError("it holds no address");
}

absl::StatusOr<std::vector<std::string>> ReadAddressFile(
    const std::string& path) {
  absl::StatusOr<std::string> text = ReadText(path);
  absl::Status status = text.status();
  if (status.ok()) {
    auto addresses = ParseAddressFile(*text);
    if (addresses.ok()) return addresses;
    status = addresses.status();
  }
  return absl::Status(status.code(),
                      absl::StrCat(path, ": ", status.message()));
}

}  // namespace expertmesh::router
