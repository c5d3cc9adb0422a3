#pragma once

// A long text scored in windows, and the figures of its log-probabilities.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace expertmesh {

struct WindowOptions {
  size_t window = 256;  // tokens; at least 2
  std::optional<size_t> max_windows = std::nullopt;
  bool complete_windows = false;  // leave out an incomplete last one
};

// Consecutive windows without overlap, views into `ids`.
std::vector<absl::Span<const uint32_t>> SplitIntoWindows(
    absl::Span<const uint32_t> ids, const WindowOptions& options);

// Log-probabilities of tokens 2 to T of the scored windows put together. The
// first token of a later window has none: nothing precedes it there.
struct Scores {
  std::vector<std::optional<float>> logprobs;

  // Appends a window's log-probabilities, one fewer than its tokens.
  void AddWindow(absl::Span<const float> window_logprobs);

  // Of those there are; empty where there is none.
  std::optional<double> Mean() const;
  std::optional<double> Perplexity() const;  // exp(-mean)

  // {"logprobs":[-1.5,null,...],"mean":-1.5,"perplexity":4.48}
  std::string Json() const;

 private:
  bool any_window_ = false;
};

}  // namespace expertmesh
