#pragma once

// Endpoints without a network: each answers by echoing its tokens (in f32),
// added up where it is asked for sums, fails as told, or keeps its batches
// until it is told to answer.

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "router_service/transport/expert_transport.h"
#include "services/core/mutex.h"
#include "services/linalg/activation_row.h"

namespace expertmesh::router {

class FakeMesh final : public ExpertTransport {
 public:
  struct Sent {
    int endpoint;
    std::vector<uint32_t> expert_ids;
    size_t num_rows;
    size_t num_sums;
    absl::Duration deadline;
    std::vector<std::string> traceparents;
  };

  void Send(int endpoint, const ExpertBatch& batch,
            BatchCompletion* completion) override {
    Batch held(batch, completion);
    absl::Status error;
    bool is_held;
    {
      MutexLock lock(&mutex_);
      sent_.push_back({endpoint,
                       {batch.expert_ids.begin(), batch.expert_ids.end()},
                       batch.num_rows(),
                       batch.num_sums,
                       batch.deadline,
                       {batch.traceparents.begin(), batch.traceparents.end()}});
      std::deque<absl::Status>& errors = errors_[endpoint];
      if (!errors.empty()) {
        error = errors.front();
        errors.pop_front();
      }
      is_held = holds_[endpoint];
      if (is_held) held_[endpoint].push_back(held);
      changed_.NotifyAll();
    }
    if (!is_held) held.Answer(error, credit_);
  }

  // The next batch to this endpoint is answered with this error.
  void Fail(int endpoint, absl::Status error) {
    MutexLock lock(&mutex_);
    errors_[endpoint].push_back(std::move(error));
  }
  void Hold(int endpoint, bool hold = true) {
    MutexLock lock(&mutex_);
    holds_[endpoint] = hold;
  }
  void set_credit(uint32_t credit) { credit_ = credit; }

  // Answers what the endpoint keeps.
  void Release(int endpoint, const absl::Status& status = absl::OkStatus()) {
    std::vector<Batch> batches;
    {
      MutexLock lock(&mutex_);
      batches.swap(held_[endpoint]);
    }
    for (Batch& batch : batches) batch.Answer(status, credit_);
  }

  void AwaitSent(int endpoint, int count) {
    MutexLock lock(&mutex_);
    changed_.Wait(lock, [&] { return CountSent(endpoint) >= count; });
  }
  int num_sent(int endpoint) {
    MutexLock lock(&mutex_);
    return CountSent(endpoint);
  }
  std::vector<Sent> sent() {
    MutexLock lock(&mutex_);
    return sent_;
  }

 private:
  // A batch with copies of what it points to.
  class Batch final : public AnsweredRows {
   public:
    Batch(const ExpertBatch& batch, BatchCompletion* completion)
        : hidden_size_(batch.hidden_size),
          row_bytes_(RowBytes(batch.dtype, batch.hidden_size)),
          completion_(completion),
          sums_(batch.num_sums * batch.hidden_size) {
      for (size_t row = 0; row < batch.num_rows(); ++row) {
        const std::byte* from =
            batch.hidden_states.data() + batch.row_token[row] * row_bytes_;
        if (batch.num_sums == 0 || batch.row_sum[row] == kNoSum) {
          rows_.insert(rows_.end(), from, from + row_bytes_);
          continue;
        }
        AddScaledRow(batch.row_weight[row], from, batch.dtype, 0,
                     batch.hidden_size,
                     &sums_[batch.row_sum[row] * batch.hidden_size]);
      }
    }
    void Answer(const absl::Status& status, uint32_t credit) {
      BatchAnswer answer;
      answer.status = status;
      if (status.ok()) answer.rows = this;
      answer.credit_rows = credit;
      completion_->Done(answer);
    }
    void Copy(size_t first, size_t last, std::byte* out) const override {
      std::memcpy(out, rows_.data() + first * row_bytes_,
                  (last - first) * row_bytes_);
    }
    void CopySum(size_t sum, std::byte* out) const override {
      std::memcpy(out, sums_.data() + sum * hidden_size_,
                  hidden_size_ * sizeof(float));
    }

   private:
    size_t hidden_size_;
    size_t row_bytes_;
    std::vector<std::byte> rows_;
    BatchCompletion* completion_;
    std::vector<float> sums_;
  };

  int CountSent(int endpoint) const {
    int count = 0;
    for (const Sent& sent : sent_) count += sent.endpoint == endpoint;
    return count;
  }

  Mutex mutex_;
  CondVar changed_;
  std::vector<Sent> sent_;
  std::map<int, std::deque<absl::Status>> errors_;
  std::map<int, bool> holds_;
  std::map<int, std::vector<Batch>> held_;
  uint32_t credit_ = 0;
};

}  // namespace expertmesh::router
