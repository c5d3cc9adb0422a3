#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "router_service/transport/expert_transport.h"
#include "services/core/mutex.h"

namespace expertmesh::testing {

// Waits for the answer to one batch and keeps its rows.
class AnswerWaiter final : public router::BatchCompletion {
 public:
  // `out` takes num_rows rows.
  AnswerWaiter(std::byte* out, size_t num_rows)
      : out_(out), num_rows_(num_rows) {}
  void Done(const router::BatchAnswer& answer) override {
    if (answer.status.ok()) answer.rows->Copy(0, num_rows_, out_);
    MutexLock lock(&mutex_);
    computed_ = answer.computed;
    done_ = true;
    status_ = answer.status;
    changed_.NotifyOne();
  }
  bool IsDone() {
    MutexLock lock(&mutex_);
    return done_;
  }
  // By the endpoint; once it is done.
  absl::Duration computed() {
    MutexLock lock(&mutex_);
    return computed_;
  }
  absl::Status Await() {
    MutexLock lock(&mutex_);
    changed_.Wait(lock, [this] { return done_; });
    return status_;
  }

 private:
  std::byte* const out_;
  const size_t num_rows_;
  Mutex mutex_;
  CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  absl::Duration computed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertmesh::testing
