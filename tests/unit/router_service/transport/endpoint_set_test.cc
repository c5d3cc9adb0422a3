#include "router_service/transport/endpoint_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>

#include "tests/unit/router_service/transport/fake_expert_service.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const ModelIdentity kModel = {"olmoe", 64, 4, 8, "abc"};

expert::v1::EndpointState GoodState() {
  expert::v1::EndpointState state;
  state.set_model_type("olmoe");
  state.set_hidden_size(64);
  state.set_num_layers(4);
  state.set_num_experts(8);
  state.set_checkpoint_fingerprint("abc");
  state.set_numerics_id("avx512-bf16");
  state.set_expert_dtype("bf16");
  state.set_device("cpu");
  state.set_version("0.1.0");
  state.set_memory_bytes(1 << 20);
  state.set_queue_capacity_rows(512);
  auto* hosted = state.add_hosted();
  hosted->set_layer(3);
  hosted->add_expert_ids(7);
  hosted = state.add_hosted();
  hosted->set_layer(1);
  hosted->add_expert_ids(0);
  hosted->add_expert_ids(5);
  return state;
}

// An endpoint set and the newest snapshot it published.
class Harness {
 public:
  explicit Harness(std::vector<std::string> addresses,
                   TransportMetrics metrics = {},
                   absl::Duration interval = absl::Seconds(60)) {
    EndpointSet::Options options;
    options.addresses = std::move(addresses);
    options.model = kModel;
    options.metrics = std::move(metrics);
    options.watch_interval = interval;
    options.on_change = [this](const std::vector<EndpointInfo>& snapshot) {
      MutexLock lock(&mutex_);
      published_ = snapshot;
      changed_.NotifyAll();
    };
    auto created = EndpointSet::Create(std::move(options));
    EXPECT_TRUE(created.ok()) << created.status();
    set_ = std::move(*created);
  }

  EndpointInfo Await(size_t index, EndpointState state,
                     const std::string& reason = "") {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(changed_.WaitFor(lock, kPatience,
                                 [&] {
                                   return published_.size() > index &&
                                          published_[index].state == state &&
                                          published_[index].reason.find(
                                              reason) != std::string::npos;
                                 }))
        << EndpointStateName(state) << " does not come, but "
        << published_[index].reason;
    return published_[index];
  }
  template <typename Condition>
  bool AwaitThat(Condition condition) {
    MutexLock lock(&mutex_);
    return changed_.WaitFor(lock, kPatience,
                            [&] { return condition(published_); });
  }
  EndpointSet& set() { return *set_; }
  void Stop() { set_.reset(); }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<EndpointInfo> published_;
  std::unique_ptr<EndpointSet> set_;
};

TEST(EndpointSet, PublishesWhatAnEndpointAnnounces) {
  FakeExpertService service;
  service.SetState(GoodState());
  Harness harness({service.address()});
  const EndpointInfo info = harness.Await(0, EndpointState::kReady);
  EXPECT_EQ(info.address, service.address());
  EXPECT_EQ(info.reason, "");
  EXPECT_THAT(info.hosted, ElementsAre(ExpertSlot{1, 0}, ExpertSlot{1, 5},
                                       ExpertSlot{3, 7}));
  EXPECT_EQ(info.numerics_id, "avx512-bf16");
  EXPECT_EQ(info.expert_dtype, "bf16");
  EXPECT_EQ(info.device, "cpu");
  EXPECT_EQ(info.version, "0.1.0");
  EXPECT_EQ(info.memory_bytes, 1u << 20);
  EXPECT_EQ(info.queue_capacity_rows, 512u);
  EXPECT_THAT(harness.set().Snapshot(), ElementsAre(info));
}

TEST(EndpointSet, FollowsChangesAndDraining) {
  FakeExpertService service;
  expert::v1::EndpointState state = GoodState();
  service.SetState(state);
  Harness harness({service.address()});
  harness.Await(0, EndpointState::kReady);
  state.set_queue_rows(77);
  state.mutable_hosted()->RemoveLast();
  service.SetState(state);
  EXPECT_TRUE(harness.AwaitThat([](const std::vector<EndpointInfo>& all) {
    return all[0].queue_rows == 77 && all[0].hosted.size() == 1;
  }));
  state.set_draining(true);
  service.SetState(state);
  harness.Await(0, EndpointState::kDraining);
}

TEST(EndpointSet, RefusesAnotherModel) {
  using State = expert::v1::EndpointState;
  const struct {
    void (*change)(State&);
    const char* reason;
  } cases[] = {{[](State& s) { s.set_model_type("mixtral"); },
                "model_type mixtral, this router's is olmoe"},
               {[](State& s) { s.set_hidden_size(65); }, "hidden_size 65"},
               {[](State& s) { s.set_num_layers(5); }, "num_layers 5"},
               {[](State& s) { s.set_num_experts(9); }, "num_experts 9"},
               {[](State& s) { s.set_checkpoint_fingerprint("x"); },
                "checkpoint_fingerprint x"},
               {[](State& s) { s.mutable_hosted(0)->add_expert_ids(8); },
                "expert 8 of layer 3"},
               {[](State& s) { s.mutable_hosted(0)->set_layer(4); },
                "expert 7 of layer 4"}};
  FakeExpertService service;
  Harness harness({service.address()});
  for (const auto& c : cases) {
    State state = GoodState();
    c.change(state);
    service.SetState(state);
    const EndpointInfo info =
        harness.Await(0, EndpointState::kRefused, c.reason);
    EXPECT_TRUE(info.hosted.empty());
    service.SetState(GoodState());  // it can come round
    harness.Await(0, EndpointState::kReady);
  }
}

TEST(EndpointSet, ALostEndpointIsConnectingAndComesBack) {
  auto service = std::make_unique<FakeExpertService>();
  const int port = service->port();
  service->SetState(GoodState());
  Harness harness({service->address()});
  harness.Await(0, EndpointState::kReady);
  service.reset();
  const EndpointInfo lost = harness.Await(0, EndpointState::kConnecting);
  EXPECT_NE(lost.reason, "");
  // What comes back under the same address is asked anew.
  expert::v1::EndpointState state = GoodState();
  state.set_device("other");
  FakeExpertService reborn(port);
  reborn.SetState(state);
  EXPECT_EQ(harness.Await(0, EndpointState::kReady).device, "other");
}

TEST(EndpointSet, SaysWhyAnEndpointIsNotThere) {
  auto placeholder = std::make_unique<FakeExpertService>();
  const std::string address = placeholder->address();
  placeholder.reset();
  Harness harness({address});
  harness.Await(0, EndpointState::kConnecting, "Connection refused");
}

TEST(EndpointSet, ALostForwardStreamAloneIsNoticed) {
  FakeExpertService service;
  service.SetState(GoodState());
  Harness harness({service.address()});
  harness.Await(0, EndpointState::kReady);
  service.EndForward(grpc::Status(grpc::StatusCode::INTERNAL, "no more"));
  harness.Await(0, EndpointState::kConnecting, "stream failed");
  service.EndForward(grpc::Status::OK);
  harness.Await(0, EndpointState::kReady);
}

TEST(EndpointSet, ASilentEndpointIsTakenForGone) {
  FakeExpertService service;
  service.SetState(GoodState());
  // The fake speaks only when its state changes.
  Harness harness({service.address()}, {}, absl::Milliseconds(20));
  harness.Await(0, EndpointState::kReady);
  harness.Await(0, EndpointState::kConnecting, "silent");
}

TEST(EndpointSet, CountsEndpointsByState) {
  prometheus::Registry registry;
  auto& family = prometheus::BuildGauge().Name("endpoints").Register(registry);
  TransportMetrics metrics;
  for (const char* state : {"connecting", "ready", "draining", "refused"}) {
    metrics.endpoints.push_back(&family.Add({{"state", state}}));
  }
  FakeExpertService good, bad;
  good.SetState(GoodState());
  expert::v1::EndpointState other = GoodState();
  other.set_model_type("mixtral");
  bad.SetState(other);
  Harness harness({good.address(), bad.address(), "127.0.0.1:1"}, metrics);
  EXPECT_TRUE(harness.AwaitThat([](const std::vector<EndpointInfo>& all) {
    return all[0].state == EndpointState::kReady &&
           all[1].state == EndpointState::kRefused;
  }));
  EXPECT_EQ(metrics.endpoints[0]->Value(), 1);
  EXPECT_EQ(metrics.endpoints[1]->Value(), 1);
  EXPECT_EQ(metrics.endpoints[2]->Value(), 0);
  EXPECT_EQ(metrics.endpoints[3]->Value(), 1);
}

TEST(EndpointSet, RefusesBadAddresses) {
  const struct {
    std::vector<std::string> addresses;
    const char* message;
  } cases[] = {{{}, "no expert service"},
               {{"127.0.0.1:5", "127.0.0.1:6", "127.0.0.1:5"}, "twice"},
               {{"127.0.0.1"}, "127.0.0.1"},
               {{"127.0.0.1:0"}, "needs a port"}};
  for (const auto& c : cases) {
    EndpointSet::Options options;
    options.addresses = c.addresses;
    const auto created = EndpointSet::Create(std::move(options));
    EXPECT_EQ(created.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(created.status().message()), HasSubstr(c.message));
  }
}

TEST(EndpointSet, EndsCleanlyWhileConnecting) {
  Harness harness({"127.0.0.1:1", "127.0.0.1:2"});
  harness.Stop();
}

}  // namespace
}  // namespace expertmesh::router
