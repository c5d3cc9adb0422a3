#pragma once

// Real expert services as processes of their own, for tests and benchmarks.

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/checkpoint/model_config.h"

namespace expertmesh::testing {

// Runs bin/expertmesh-expert, or what the environment variable
// EXPERTMESH_EXPERT_BINARY names beside it or by an absolute path, `count`
// times, experts split over
// the processes in contiguous ranges. Ends them when destroyed.
class ExpertProcesses {
 public:
  static absl::StatusOr<std::unique_ptr<ExpertProcesses>> Start(
      const std::string& model, int64_t num_experts, int count,
      const std::vector<std::string>& extra_flags = {});
  ~ExpertProcesses();

  const std::vector<std::string>& addresses() const { return addresses_; }

 private:
  ExpertProcesses() = default;
  absl::Status Launch(const std::string& model, int64_t first, int64_t last,
                      const std::vector<std::string>& extra_flags);

  std::vector<pid_t> pids_;
  std::vector<std::string> addresses_;
};

}  // namespace expertmesh::testing
