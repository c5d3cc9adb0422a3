#pragma once

// The figures of a benchmark, for people and for machines.

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "expertmesh/v1/model.pb.h"
#include "services/cli/bench_load.h"
#include "services/cli/bench_requests.h"
#include "services/cli/bench_summary.h"

namespace expertmesh {

// What all levels have in common.
struct BenchSettings {
  std::string server;
  v1::Model model;
  RequestOptions requests;
  std::string texts_file;  // empty: random tokens
  uint64_t warmup_requests = 0;
  std::optional<double> timeout_seconds;
};

struct LevelReport {
  LoadLevel load;
  absl::Time begun;
  BenchSummary summary;
};

// The model and what is asked of it, in two lines.
std::string SettingsText(const BenchSettings& settings);
// A paragraph of figures.
std::string LevelText(const LevelReport& level);
// One line for each level.
std::string ComparisonText(const std::vector<LevelReport>& levels);

// One JSON object in one line, with everything that was asked and measured;
// times in seconds.
std::string LevelJson(const BenchSettings& settings, const LevelReport& level);

// Columns as wide as their widest cell and two blanks between; the first is
// aligned to the left, the rest to the right.
std::string AlignedText(const std::vector<std::vector<std::string>>& rows);

}  // namespace expertmesh
