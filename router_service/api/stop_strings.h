#pragma once

// Ends a stream of text before the first of some strings.

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace expertmesh::router {

// Holds back text that may be the start of a stop string. One thread.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops)
      : stops_(std::move(stops)) {}

  // Adds text; returns what can be shown. After a stop string has been seen
  // (found() is true) nothing more comes.
  std::string Push(absl::string_view text);
  // What was held back, now that no more text comes.
  std::string Flush();
  bool found() const { return found_; }

 private:
  const std::vector<std::string> stops_;
  std::string held_;
  bool found_ = false;
};

}  // namespace expertmesh::router
