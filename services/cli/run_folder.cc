#include "services/cli/run_folder.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace expertmesh {
namespace {

namespace fs = std::filesystem;

constexpr absl::string_view kPrefix = "expertmesh-serve-";

int OpenFolder(const std::string& path) {
  return open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

fs::path BaseFolder() {
  std::error_code error;
  const fs::path base = fs::temp_directory_path(error);
  return error ? "/tmp" : base;
}

// Calls `visit` for each run folder of this user. `is_living`: somebody has its
// lock; else nobody takes it during the call.
void VisitFolders(
    absl::FunctionRef<void(const std::string& path, bool is_living)> visit) {
  std::error_code error;
  for (fs::directory_iterator entry(BaseFolder(), error), end;
       !error && entry != end; entry.increment(error)) {
    const std::string path = entry->path().string();
    if (!absl::StartsWith(entry->path().filename().string(), kPrefix)) continue;
    const int fd = OpenFolder(path);
    if (fd < 0) continue;
    struct stat status;
    if (fstat(fd, &status) == 0 && status.st_uid == geteuid()) {
      visit(path, flock(fd, LOCK_EX | LOCK_NB) != 0);
    }
    close(fd);
  }
}

}  // namespace

absl::StatusOr<RunFolder> RunFolder::Create() {
  const fs::path base = BaseFolder();
  VisitFolders([](const std::string& path, bool is_living) {
    std::error_code ignored;
    if (!is_living) fs::remove_all(path, ignored);
  });
  while (true) {
    std::string path = (base / absl::StrCat(kPrefix, "XXXXXX")).string();
    if (mkdtemp(path.data()) == nullptr) {
      return absl::InternalError(absl::StrCat(
          "cannot make a folder for ready files in ", base.string(), ": ",
          strerror(errno), "; set TMPDIR to one with room"));
    }
    const int fd = OpenFolder(path);
    if (fd >= 0) flock(fd, LOCK_EX);
    // Another launcher may have taken it for a stale one before it was locked.
    if (access(path.c_str(), F_OK) == 0) return RunFolder(std::move(path), fd);
    if (fd >= 0) close(fd);
  }
}

std::vector<std::string> RunFolder::Living() {
  std::vector<std::string> paths;
  VisitFolders([&](const std::string& path, bool is_living) {
    if (is_living) paths.push_back(path);
  });
  return paths;
}

RunFolder::RunFolder(RunFolder&& other)
    : path_(std::exchange(other.path_, "")),
      lock_fd_(std::exchange(other.lock_fd_, -1)) {}

RunFolder::~RunFolder() {
  if (path_.empty()) return;
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  if (lock_fd_ >= 0) close(lock_fd_);
}

}  // namespace expertmesh
