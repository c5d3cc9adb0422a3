#pragma once

// A launcher's temporary folder.

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace expertmesh {

// Made in the system's folder for temporary files and removed with everything
// in it at the end. A launcher that is killed outright leaves its folder
// behind: the next one removes it, as it does with every such folder of this
// user whose lock nobody holds. The kernel drops the lock with the process.
class RunFolder {
 public:
  // Errors: INTERNAL naming the folder for temporary files.
  static absl::StatusOr<RunFolder> Create();

  // Paths of those that living launchers of this user have, in any order.
  static std::vector<std::string> Living();

  RunFolder(RunFolder&& other);
  RunFolder& operator=(RunFolder&&) = delete;
  ~RunFolder();

  const std::string& path() const { return path_; }

 private:
  RunFolder(std::string path, int lock_fd)
      : path_(std::move(path)), lock_fd_(lock_fd) {}

  std::string path_;
  int lock_fd_;  // of the folder itself
};

}  // namespace expertmesh
