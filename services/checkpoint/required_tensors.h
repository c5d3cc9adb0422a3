#pragma once

// The list of tensors a model is made of, from its configuration alone.

#include <cstdint>
#include <string>

#include "absl/container/inlined_vector.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "services/checkpoint/model_config.h"

namespace expertmesh {

struct RequiredTensor {
  std::string name;
  absl::InlinedVector<int64_t, 4> shape;
};

using TensorVisitor = absl::FunctionRef<absl::Status(const RequiredTensor&)>;

// Visits, until one is refused, what the router loads: everything but experts.
absl::Status VisitRouterTensors(const ModelConfig& config,
                                const ModelFamily& family, TensorVisitor visit);

// Visits, until one is refused, the three matrices of each expert of each MoE
// layer.
absl::Status VisitExpertTensors(const ModelConfig& config,
                                const ModelFamily& family, TensorVisitor visit);

// Of each sampled tensor, its first bytes, or all where it has fewer.
inline constexpr uint64_t kFingerprintSampleBytes = 1024;

// Visits, until one is refused, the tensors whose first bytes are part of a
// checkpoint's fingerprint: those of the router, and the matrices of the first
// and the last expert of each MoE layer.
absl::Status VisitSampledTensors(const ModelConfig& config,
                                 const ModelFamily& family,
                                 TensorVisitor visit);

}  // namespace expertmesh
