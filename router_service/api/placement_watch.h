#pragma once

// WatchPlacement: a stream of placements to whoever wants to follow.

#include <grpcpp/grpcpp.h>

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "router_service/control/controller.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Each watcher has one message under way; changes meanwhile are told by the
// next one. Thread-safe.
class PlacementWatchers {
 public:
  // `controller` must outlive this; listens to it until destroyed, which must
  // be after the server's end.
  explicit PlacementWatchers(Controller* controller);
  ~PlacementWatchers();

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Add();

  // Ends all streams, now and later, with UNAVAILABLE.
  void EndAll();

 private:
  class Watcher;
  void OnChange();

  Controller* const controller_;
  Mutex mutex_;
  std::vector<std::shared_ptr<Watcher>> watchers_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

// A stream that only says why there is none.
grpc::ServerWriteReactor<grpc::ByteBuffer>* RefuseWatch(
    const absl::Status& status);

}  // namespace expertmesh::router
