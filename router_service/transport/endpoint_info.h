#pragma once

// What is known of an expert service, and what it must announce to be used.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace expertmesh::router {

enum class EndpointState {
  kConnecting,  // not heard of, or lost: serves nothing
  kReady,       // takes batches
  kDraining,    // finishes what it has, wants nothing new
  kRefused,     // may not serve this mesh
  kLeaving,     // not among the pool's addresses any more; finishes what it has
};
constexpr size_t kNumEndpointStates = 5;

// "connecting", "ready", "draining", "refused", "leaving": values of the
// metric's label.
absl::string_view EndpointStateName(EndpointState state);

// What is wrong with an endpoint that is refused.
enum class RefusalReason {
  kWireVersion,    // speaks another version of the protocol
  kModel,          // holds experts of another architecture or size
  kCheckpoint,     // holds other weights of the same shape
  kExpertDType,    // holds the weights in another type than the mesh
  kHostedExperts,  // names experts the model lacks, or one twice
  kDuplicate,      // is in use already, by another address
  kWireDType,      // does not know the type of rows that is sent
};
constexpr size_t kNumRefusalReasons = 7;

// "wire_version", "model", "checkpoint", "expert_dtype", "hosted_experts",
// "duplicate", "wire_dtype": values of the metric's label.
absl::string_view RefusalReasonName(RefusalReason reason);

// One (layer, expert).
struct ExpertSlot {
  uint32_t layer = 0;
  uint32_t expert_id = 0;
  bool operator==(const ExpertSlot&) const = default;
};

// What an endpoint counted: rows it served for a slot since it started.
struct SlotRows {
  ExpertSlot slot;
  uint64_t rows = 0;
};

// All that it counted.
struct EndpointLoad {
  std::vector<SlotRows> rows;  // slots that served any
  uint64_t busy_us = 0;        // microseconds its device computed
  uint64_t expert_runs = 0;    // experts it computed, each for all rows at hand
};

// What is known of an endpoint. From `hosted` on it is what the endpoint
// announced, and empty when nothing it announced holds any more.
struct EndpointInfo {
  // Its number in the transport; never given to another endpoint.
  int index = 0;
  std::string pool;
  std::string address;
  EndpointState state = EndpointState::kConnecting;
  std::string reason;          // why it is neither ready nor draining
  uint64_t inflight_rows = 0;  // sent from here and not answered
  // The address by which the same service is in use, if this is refused for it.
  std::string duplicate_of;

  std::vector<ExpertSlot> hosted;  // ascending
  std::string numerics_id;
  std::string expert_dtype;
  std::string device;
  std::string version;
  uint64_t memory_bytes = 0;
  uint64_t memory_budget_bytes = 0;  // above 0: takes orders what to hold
  uint64_t placement_epoch = 0;      // of the last such order; 0: none
  uint64_t instance_id = 0;          // of the process; 0: not told
  bool adds_rows = false;            // knows batches that ask for sums
  // The rest changes with every batch, and is not worth telling of alone.
  uint32_t queue_rows = 0;
  uint32_t credit_rows = 0;  // at first, in flight; 0: not limited
  // Counted since it started, over all routers.
  uint64_t served_rows = 0;
  uint64_t busy_us = 0;  // microseconds its device computed
  bool operator==(const EndpointInfo&) const = default;
};

// What an endpoint must announce to be used.
struct ModelIdentity {
  std::string model_type;
  uint32_t hidden_size = 0;
  uint32_t num_layers = 0;
  uint32_t num_experts = 0;
  std::string checkpoint_fingerprint;  // empty: not compared
  // Type of the expert weights; empty: that of the endpoints in use.
  std::string expert_dtype;
  bool int8_rows = false;  // must know rows of int8
};

}  // namespace expertmesh::router
