#pragma once

// What the client API counts.

#include <array>

#include "absl/status/status.h"
#include "prometheus/counter.h"

namespace expertmesh::router {

enum class Method { kGenerate, kScore, kTokenize, kDetokenize };
inline constexpr int kNumMethods = 4;
inline constexpr const char* kMethodNames[kNumMethods] = {
    "generate", "score", "tokenize", "detokenize"};
inline constexpr int kNumStatusCodes = 17;  // gRPC's, 0 to 16

// Pointers are owned by the registry and never null.
struct ApiMetrics {
  std::array<std::array<prometheus::Counter*, kNumStatusCodes>, kNumMethods>
      requests;

  void Count(Method method, const absl::Status& status) const {
    requests[static_cast<int>(method)][static_cast<int>(status.code())]
        ->Increment();
  }
};

}  // namespace expertmesh::router
