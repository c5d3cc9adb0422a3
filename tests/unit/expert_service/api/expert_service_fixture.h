#pragma once

// The service over real gRPC, called by the generated client, with a kernel
// that doubles its input and a loader of empty experts.

#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <memory>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "expert_service/api/expert_service_impl.h"
#include "expert_service/execution/expert_executor.h"
#include "services/core/mutex.h"
#include "services/runtime/server_runtime.h"

namespace expertmesh::expert {

inline constexpr uint32_t kHidden = 4;
inline constexpr uint32_t kLayers = 3;
inline constexpr uint32_t kExperts = 4;

// y = 2 x for f32; can be held back to let batches gather.
class DoublingFfn final : public GroupedFfn {
 public:
  absl::Status Start(const GroupedRows& rows) override {
    MutexLock lock(&mutex_);
    ++runs_;
    rows_of_run_.push_back(rows.group_offsets.back());
    changed_.NotifyAll();
    changed_.Wait(lock, [this] { return !held_ || allowed_ > 0; });
    allowed_ -= held_ ? 1 : 0;
    const size_t count = rows.group_offsets.back() * kHidden;
    for (size_t i = 0; i < count; ++i) {
      static_cast<float*>(rows.y)[i] = 2 * static_cast<const float*>(rows.x)[i];
    }
    return absl::OkStatus();
  }
  void Hold(bool held) {
    MutexLock lock(&mutex_);
    held_ = held;
    changed_.NotifyAll();
  }
  // Lets so many runs through although the rest is held.
  void AllowRuns(int runs) {
    MutexLock lock(&mutex_);
    allowed_ = runs;
    changed_.NotifyAll();
  }
  // Rows of each run so far.
  std::vector<uint32_t> rows_of_run() {
    MutexLock lock(&mutex_);
    return rows_of_run_;
  }
  void AwaitRun(int runs) {
    MutexLock lock(&mutex_);
    changed_.Wait(lock, [&] { return runs_ >= runs; });
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool held_ = false;
  int allowed_ = 0;
  int runs_ = 0;
  std::vector<uint32_t> rows_of_run_;
};

// All slots but those of the last expert.
inline std::vector<ExpertSlot> FirstSlots() {
  std::vector<ExpertSlot> slots;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (int64_t expert = 0; expert + 1 < kExperts; ++expert) {
      slots.push_back({layer, expert});
    }
  }
  return slots;
}

inline ModelConfig Model() {
  ModelConfig model;
  model.num_layers = kLayers;
  model.num_experts = kExperts;
  model.layers.resize(kLayers);
  return model;
}

inline v1::EndpointState Endpoint() {
  v1::EndpointState endpoint;
  endpoint.set_num_layers(kLayers);
  endpoint.set_num_experts(kExperts);
  endpoint.set_hidden_size(kHidden);
  return endpoint;
}

// Loads empty experts; can be held back.
class TestLoader {
 public:
  absl::StatusOr<ExpertWeights::Expert> Load(ExpertSlot,
                                             const std::stop_token& stop) {
    MutexLock lock(&mutex_);
    ++begun_;
    stop_ = stop;
    changed_.NotifyAll();
    changed_.Wait(lock, [this] { return !held_; });
    return std::make_shared<const PackedExpert>();
  }
  void Hold(bool held) {
    MutexLock lock(&mutex_);
    held_ = held;
    changed_.NotifyAll();
  }
  void AwaitLoad(int begun) {
    MutexLock lock(&mutex_);
    changed_.Wait(lock, [&] { return begun_ >= begun; });
  }
  int begun() {
    MutexLock lock(&mutex_);
    return begun_;
  }
  // Until the load under way is told to stop.
  void AwaitStop() {
    std::stop_token stop;
    {
      MutexLock lock(&mutex_);
      stop = stop_;
    }
    while (!stop.stop_requested()) std::this_thread::yield();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool held_ = false;
  int begun_ = 0;
  std::stop_token stop_;  // of the last load
};

// One row for each of the experts; row i is filled with i + 1.
inline v1::ExpertBatch Batch(uint64_t number, uint32_t layer,
                             const std::vector<uint32_t>& experts) {
  v1::ExpertBatch batch;
  batch.set_sequence_number(number);
  batch.set_layer(layer);
  batch.set_data_type(v1::DATA_TYPE_F32);
  batch.set_hidden_size(kHidden);
  batch.set_num_tokens(static_cast<uint32_t>(experts.size()));
  batch.add_group_offsets(0);
  std::vector<float> activations;
  for (uint32_t i = 0; i < experts.size(); ++i) {
    batch.add_expert_ids(experts[i]);
    batch.add_group_offsets(i + 1);
    batch.add_row_token(i);
    activations.insert(activations.end(), kHidden, static_cast<float>(i + 1));
  }
  batch.set_hidden_states(activations.data(), activations.size() * 4);
  return batch;
}

inline std::vector<float> Rows(const v1::ExpertResult& result) {
  std::vector<float> rows(result.hidden_states().size() / 4);
  std::memcpy(rows.data(), result.hidden_states().data(), rows.size() * 4);
  return rows;
}

inline std::vector<float> Sums(const v1::ExpertResult& result) {
  std::vector<float> sums(result.partial_sums().size() / 4);
  std::memcpy(sums.data(), result.partial_sums().data(), sums.size() * 4);
  return sums;
}

using ForwardCall = grpc::ClientReaderWriter<v1::ExpertBatch, v1::ExpertResult>;

class ExpertServiceTest : public testing::Test {
 protected:
  ExpertServiceTest() {
    executor_ = std::make_unique<ExpertExecutor>(
        ExpertExecutor::Options{kHidden, 64, Clock::Real()},
        ExpertExecutor::Metrics{},
        ExpertExecutor::Parts{&queue_, &weights_, &ffn_, &replies_, &load_,
                              &pool_});
    EXPECT_TRUE(contents_.Load(FirstSlots(), 0, {}).ok());
    ExpertServiceImpl::Metrics metrics;
    for (size_t code = 0; code < answers_.size(); ++code) {
      metrics.batches[code] = &answers_[code];
    }
    metrics.streams = &streams_;
    metrics.bytes_in_flight = &bytes_in_flight_;
    ExpertServiceImpl::Options options;
    options.endpoint = Endpoint();
    options.max_batches_per_stream = kMaxBatches;
    options.max_waiting_orders = 2;
    options.max_streams = kMaxStreams;
    options.max_bytes_in_flight = kMaxBytes;
    options.on_drain = [this](bool draining) { drains_.push_back(draining); };
    service_ = std::make_unique<ExpertServiceImpl>(
        options, metrics,
        ExpertServiceImpl::Parts{&queue_, &load_, &weights_, &contents_,
                                 &links_});
    server_ = *GrpcServer::Start({}, {service_.get()});
    channel_ = grpc::CreateChannel(server_->address(),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::ExpertService::NewStub(channel_);
  }
  ~ExpertServiceTest() override {
    ffn_.Hold(false);
    loader_.Hold(false);
    service_->EndStreams();
    server_->Shutdown(absl::Seconds(10));
    executor_.reset();
  }

  static constexpr size_t kMaxBatches = 4;
  static constexpr int64_t kMaxStreams = 8;
  static constexpr uint64_t kMaxBytes = 1500;
  static constexpr uint64_t kBudgetBytes = 950;

  LinkReaders links_;
  ExpertQueue queue_{{.capacity_rows = 12}, {}};
  const ModelConfig model_ = Model();
  LiveWeights weights_{std::make_shared<ExpertWeights>(
      kLayers, kExperts, std::vector<ExpertSlot>(),
      std::vector<PackedExpert>())};
  TestLoader loader_;
  ExpertContents contents_{
      {.model = &model_,
       .load =
           [this](ExpertSlot slot, const std::stop_token& stop) {
             return loader_.Load(slot, stop);
           },
       .slot_bytes = 100,
       .memory_budget_bytes = kBudgetBytes},
      {},
      &weights_};
  DoublingFfn ffn_;
  PayloadPool replies_;
  WorkerPool pool_{1};
  SlotLoad load_{kLayers, kExperts};
  std::array<prometheus::Counter, v1::Code_ARRAYSIZE> answers_;
  prometheus::Gauge streams_;
  prometheus::Gauge bytes_in_flight_;
  std::vector<bool> drains_;  // as told by the service, in order
  std::unique_ptr<ExpertServiceImpl> service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<ExpertExecutor> executor_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::ExpertService::Stub> stub_;
};

}  // namespace expertmesh::expert
