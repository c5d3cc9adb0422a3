#include "tests/support/expert_processes.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "services/core/status_macros.h"

namespace expertmesh::testing {
namespace {

std::string BinaryPath() {
  const char* const other = std::getenv("EXPERTMESH_EXPERT_BINARY");
  return std::filesystem::path(EXPERTMESH_BIN_DIR) /
         (other == nullptr ? "expertmesh-expert" : other);
}

// The address in a ready file, once the process has written it.
absl::StatusOr<std::string> AwaitReady(const std::string& path, pid_t pid) {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (absl::Now() < deadline) {
    if (std::ifstream file(path); file) {
      return nlohmann::json::parse(file)["grpc"].get<std::string>();
    }
    int status;
    if (waitpid(pid, &status, WNOHANG) == pid) {
      return absl::InternalError(
          "the expert service ended before it was ready");
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  return absl::DeadlineExceededError("the expert service is not ready");
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertProcesses>> ExpertProcesses::Start(
    const std::string& model, int64_t num_experts, int count,
    const std::vector<std::string>& extra_flags) {
  std::unique_ptr<ExpertProcesses> processes(new ExpertProcesses());
  for (int64_t i = 0; i < count; ++i) {
    RETURN_IF_ERROR(processes->Launch(model, i * num_experts / count,
                                      (i + 1) * num_experts / count - 1,
                                      extra_flags));
  }
  return processes;
}

absl::Status ExpertProcesses::Launch(
    const std::string& model, int64_t first, int64_t last,
    const std::vector<std::string>& extra_flags) {
  const std::string ready =
      absl::StrCat(std::filesystem::temp_directory_path().string(), "/expert-",
                   getpid(), "-", pids_.size(), "-", first, ".json");
  std::filesystem::remove(ready);
  const std::string binary = BinaryPath();
  std::vector<std::string> args = {binary,
                                   "--model",
                                   model,
                                   "--experts",
                                   absl::StrCat(first, "-", last),
                                   "--ready-file",
                                   ready,
                                   "--exit-with-parent",
                                   "--log-level",
                                   "warning"};
  args.insert(args.end(), extra_flags.begin(), extra_flags.end());
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);
  pid_t pid;
  if (posix_spawn(&pid, binary.c_str(), nullptr, nullptr, argv.data(),
                  environ) != 0) {
    return absl::InternalError(absl::StrCat("cannot start ", binary));
  }
  pids_.push_back(pid);
  ASSIGN_OR_RETURN(const std::string address, AwaitReady(ready, pid));
  std::filesystem::remove(ready);
  addresses_.push_back(address);
  return absl::OkStatus();
}

ExpertProcesses::~ExpertProcesses() {
  for (const pid_t pid : pids_) kill(pid, SIGKILL);
  for (const pid_t pid : pids_) waitpid(pid, nullptr, 0);
}

}  // namespace expertmesh::testing
