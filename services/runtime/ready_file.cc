#include "services/runtime/ready_file.h"

#include <errno.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace expertmesh {
namespace {

absl::Status CannotWrite(const std::string& path, int error) {
  return absl::UnavailableError(absl::StrCat("cannot write ready file ", path,
                                             ": ", std::strerror(error)));
}

}  // namespace

absl::Status WriteReadyFile(const std::string& path,
                            absl::string_view contents) {
  // In the same folder, as a rename is atomic only within one file system.
  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  {
    std::ofstream file(temporary, std::ios::trunc);
    file << contents << '\n' << std::flush;
    if (!file) {
      const int error = errno;
      std::remove(temporary.c_str());
      return CannotWrite(path, error);
    }
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    std::remove(temporary.c_str());
    return CannotWrite(path, error);
  }
  return absl::OkStatus();
}

}  // namespace expertmesh
