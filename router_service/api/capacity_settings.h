#pragma once

// What the operator may change of capacity while the router runs.

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "expertmesh/admin/v1/admin.pb.h"
#include "router_service/api/model_service_impl.h"
#include "router_service/api/request_translator.h"
#include "router_service/dispatch/capacity.h"
#include "router_service/engine/engine.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Keeps engine, requests' defaults and the model's description in step.
// Thread-safe.
class CapacitySettings {
 public:
  // As they were started with `capacity` and `policy`. Pointers must outlive
  // this.
  CapacitySettings(const CapacityOptions& capacity, OverflowPolicy policy,
                   Engine* engine, RequestTranslator* translator,
                   ModelServiceImpl* model)
      : engine_(engine),
        translator_(translator),
        model_(model),
        capacity_(capacity),
        policy_(policy) {}

  // Changes what is set. Errors: INVALID_ARGUMENT naming the field and what it
  // accepts; then nothing is changed.
  absl::StatusOr<admin::v1::SetCapacityResponse> Set(
      const admin::v1::SetCapacityRequest& request);

 private:
  Engine* const engine_;
  RequestTranslator* const translator_;
  ModelServiceImpl* const model_;
  Mutex mutex_;
  CapacityOptions capacity_ ABSL_GUARDED_BY(mutex_);
  OverflowPolicy policy_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertmesh::router
