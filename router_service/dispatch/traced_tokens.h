#pragma once

#include <cstdint>
#include <string>

namespace expertmesh::router {

// Consecutive tokens of a request whose trace is followed, and the context that
// batches with their rows carry.
struct TracedTokens {
  int64_t first = 0;
  int64_t last = 0;  // one past the end
  std::string traceparent;
};

}  // namespace expertmesh::router
