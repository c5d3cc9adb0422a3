#include "services/cli/score_windows.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace expertmesh {
namespace {

nlohmann::ordered_json NumberOrNull(std::optional<double> number) {
  return number ? nlohmann::ordered_json(*number) : nlohmann::ordered_json();
}

}  // namespace

std::vector<absl::Span<const uint32_t>> SplitIntoWindows(
    absl::Span<const uint32_t> ids, const WindowOptions& options) {
  std::vector<absl::Span<const uint32_t>> windows;
  for (size_t start = 0; start < ids.size(); start += options.window) {
    if (options.max_windows && windows.size() >= *options.max_windows) break;
    const absl::Span<const uint32_t> window =
        ids.subspan(start, options.window);
    if (options.complete_windows && window.size() < options.window) break;
    windows.push_back(window);
  }
  return windows;
}

void Scores::AddWindow(absl::Span<const float> window_logprobs) {
  if (any_window_) logprobs.push_back(std::nullopt);
  any_window_ = true;
  logprobs.insert(logprobs.end(), window_logprobs.begin(),
                  window_logprobs.end());
}

std::optional<double> Scores::Mean() const {
  double sum = 0;
  size_t count = 0;
  for (const std::optional<float>& logprob : logprobs) {
    if (!logprob) continue;
    sum += *logprob;
    ++count;
  }
  if (count == 0) return std::nullopt;
  return sum / count;
}

std::optional<double> Scores::Perplexity() const {
  const std::optional<double> mean = Mean();
  if (!mean) return std::nullopt;
  return std::exp(-*mean);
}

std::string Scores::Json() const {
  nlohmann::ordered_json json;
  json["logprobs"] = nlohmann::ordered_json::array();
  for (const std::optional<float>& logprob : logprobs) {
    json["logprobs"].push_back(NumberOrNull(logprob));
  }
  json["mean"] = NumberOrNull(Mean());
  json["perplexity"] = NumberOrNull(Perplexity());
  return json.dump();
}

}  // namespace expertmesh
