#include "router_service/transport/endpoint_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>

#include <cstring>
#include <map>
#include <optional>

#include "services/wire/payload_pool.h"
#include "tests/unit/router_service/transport/fake_expert_service.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

const ModelIdentity kModel = {"olmoe", 64, 4, 8, "abc", ""};

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
  state.set_credit_rows(256);
  state.set_wire_version(1);
  state.set_adds_rows(true);
  state.set_placement_epoch(9);
  state.set_memory_budget_bytes(1 << 21);
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
  explicit Harness(const std::vector<std::string>& addresses,
                   TransportMetrics metrics = {},
                   absl::Duration interval = absl::Seconds(60),
                   const ModelIdentity& model = kModel) {
    EndpointSet::Options options;
    options.model = model;
    options.metrics = std::move(metrics);
    options.watch_interval = interval;
    options.on_change = [this](const std::vector<EndpointInfo>& snapshot) {
      MutexLock lock(&mutex_);
      published_ = snapshot;
      ++num_published_;
      changed_.NotifyAll();
    };
    options.on_load = [this](const std::string& address,
                             const EndpointLoad& load) {
      MutexLock lock(&mutex_);
      load_[address] = load;
      changed_.NotifyAll();
    };
    set_ = std::make_unique<EndpointSet>(std::move(options));
    set_->SetAddresses("pool", addresses);
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
  // The counters that come from this address.
  EndpointLoad AwaitLoad(const std::string& address) {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(
        changed_.WaitFor(lock, kPatience, [&] { return HasLoad(address); }));
    return load_[address];
  }
  // Waits until a slot's counter has come to be this.
  void AwaitLoadOf(const std::string& address, const SlotRows& counter) {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(changed_.WaitFor(lock, kPatience, [&] {
      for (const SlotRows& slot : load_[address].rows) {
        if (slot.slot == counter.slot && slot.rows == counter.rows) return true;
      }
      return false;
    }));
  }
  int num_published() {
    MutexLock lock(&mutex_);
    return num_published_;
  }
  bool HasLoad(const std::string& address) const {
    return load_.count(address) > 0;
  }
  EndpointSet& set() { return *set_; }
  void Stop() { set_.reset(); }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<EndpointInfo> published_;
  int num_published_ = 0;
  std::map<std::string, EndpointLoad> load_;
  std::unique_ptr<EndpointSet> set_;
};

TEST(EndpointSet, PublishesWhatAnEndpointAnnounces) {
  FakeExpertService service;
  service.SetState(GoodState());
  Harness harness({service.address()});
  const EndpointInfo info = harness.Await(0, EndpointState::kReady);
  EXPECT_EQ(info.index, 0);
  EXPECT_EQ(info.pool, "pool");
  EXPECT_EQ(info.address, service.address());
  EXPECT_EQ(info.reason, "");
  EXPECT_THAT(info.hosted, ElementsAre(ExpertSlot{1, 0}, ExpertSlot{1, 5},
                                       ExpertSlot{3, 7}));
  EXPECT_EQ(info.numerics_id, "avx512-bf16");
  EXPECT_EQ(info.expert_dtype, "bf16");
  EXPECT_EQ(info.device, "cpu");
  EXPECT_EQ(info.version, "0.1.0");
  EXPECT_EQ(info.memory_bytes, 1u << 20);
  EXPECT_EQ(info.credit_rows, 256u);
  EXPECT_EQ(info.placement_epoch, 9u);
  EXPECT_EQ(info.memory_budget_bytes, 1u << 21);
  EXPECT_EQ(info.instance_id, 0u);
  EXPECT_TRUE(info.adds_rows);
  EXPECT_THAT(harness.set().Snapshot(), ElementsAre(info));
}

TEST(EndpointSet, ReportsWhatEndpointsOfTheMeshCounted) {
  FakeExpertService good, other;
  expert::v1::EndpointState state = GoodState();
  expert::v1::SlotLoad* load = state.add_load();
  load->set_layer(3);
  load->set_expert_id(7);
  load->set_rows(42);
  state.set_busy_us(1000);
  state.set_expert_runs(30);
  good.SetState(state);
  state.set_checkpoint_fingerprint("another");
  other.SetState(state);
  Harness harness({other.address(), good.address()});
  harness.Await(0, EndpointState::kRefused);
  const EndpointLoad counted = harness.AwaitLoad(good.address());
  ASSERT_THAT(counted.rows, SizeIs(1));
  EXPECT_EQ(counted.rows[0].slot, (ExpertSlot{3, 7}));
  EXPECT_EQ(counted.rows[0].rows, 42u);
  EXPECT_EQ(counted.busy_us, 1000u);
  EXPECT_EQ(counted.expert_runs, 30u);
  harness.Stop();
  EXPECT_FALSE(harness.HasLoad(other.address()));
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

TEST(EndpointSet, KnowsWhatWasCounted) {
  FakeExpertService service;
  expert::v1::EndpointState state = GoodState();
  for (const uint32_t expert_id : {0, 5}) {
    auto* load = state.add_load();
    load->set_layer(1);
    load->set_expert_id(expert_id);
    load->set_rows(100 + expert_id);
  }
  state.set_busy_us(7);
  service.SetState(state);
  Harness harness({service.address()});
  const EndpointInfo before = harness.Await(0, EndpointState::kReady);
  EXPECT_EQ(before.served_rows, 205u);
  EXPECT_EQ(before.busy_us, 7u);
  // Nobody is told of what every batch changes.
  state.mutable_load(0)->set_rows(200);
  state.set_busy_us(9);
  state.set_queue_rows(1);
  state.set_credit_rows(255);
  const int published = harness.num_published();
  service.SetState(state);
  harness.AwaitLoadOf(service.address(), {{1, 0}, 200});
  EXPECT_EQ(harness.num_published(), published);
  const EndpointInfo after = harness.set().Snapshot()[0];
  EXPECT_EQ(after.queue_rows, 1u);
  EXPECT_EQ(after.credit_rows, 255u);
  EXPECT_EQ(after.served_rows, 305u);
  EXPECT_EQ(after.busy_us, 9u);
}

TransportMetrics RefusalCounters(prometheus::Registry* registry) {
  auto& family = prometheus::BuildCounter().Name("n_total").Register(*registry);
  TransportMetrics metrics;
  for (size_t i = 0; i < kNumRefusalReasons; ++i) {
    const auto reason = static_cast<RefusalReason>(i);
    metrics.refused.push_back(
        &family.Add({{"reason", std::string(RefusalReasonName(reason))}}));
  }
  return metrics;
}

TEST(EndpointSet, RefusesWhatDoesNotFit) {
  using State = expert::v1::EndpointState;
  using Reason = RefusalReason;
  const struct {
    void (*change)(State&);
    Reason reason;
    const char* message;
  } cases[] = {
      {[](State& s) { s.set_wire_version(0); }, Reason::kWireVersion,
       "wire_version 0, this router's is 1"},
      {[](State& s) { s.set_wire_version(2); }, Reason::kWireVersion,
       "wire_version 2"},
      {[](State& s) { s.set_model_type("mixtral"); }, Reason::kModel,
       "model_type mixtral, this router's is olmoe"},
      {[](State& s) { s.set_hidden_size(65); }, Reason::kModel,
       "hidden_size 65"},
      {[](State& s) { s.set_num_layers(5); }, Reason::kModel, "num_layers 5"},
      {[](State& s) { s.set_num_experts(9); }, Reason::kModel, "num_experts 9"},
      {[](State& s) { s.set_checkpoint_fingerprint("x"); }, Reason::kCheckpoint,
       "checkpoint_fingerprint x"},
      {[](State& s) { s.mutable_hosted(0)->add_expert_ids(8); },
       Reason::kHostedExperts, "expert 8 of layer 3, which the model"},
      {[](State& s) { s.mutable_hosted(0)->set_layer(4); },
       Reason::kHostedExperts, "expert 7 of layer 4, which the model"},
      {[](State& s) { *s.add_hosted() = s.hosted(0); }, Reason::kHostedExperts,
       "expert 7 of layer 3 twice"}};
  prometheus::Registry registry;
  TransportMetrics metrics = RefusalCounters(&registry);
  FakeExpertService service;
  Harness harness({service.address()}, metrics);
  for (const auto& c : cases) {
    prometheus::Counter& counter =
        *metrics.refused[static_cast<size_t>(c.reason)];
    const double before = counter.Value();
    State state = GoodState();
    c.change(state);
    service.SetState(state);
    const EndpointInfo info =
        harness.Await(0, EndpointState::kRefused, c.message);
    EXPECT_TRUE(info.hosted.empty());
    EXPECT_EQ(counter.Value(), before + 1);
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

// The stream that spoke may lead to a service that has vanished, and Forward to
// another one that has its address now.
TEST(EndpointSet, OneThatSpokeBeforeForwardOpenedIsAskedAnew) {
  FakeExpertService service;
  service.EndForward(grpc::Status(grpc::StatusCode::INTERNAL, "not yet"));
  service.SetState(GoodState());
  Harness harness({service.address()});
  EXPECT_TRUE(harness.AwaitThat([](const std::vector<EndpointInfo>& all) {
    return !all.empty() && !all[0].hosted.empty() &&
           all[0].state == EndpointState::kConnecting;
  }));
  expert::v1::EndpointState state = GoodState();
  state.set_checkpoint_fingerprint("another");
  service.SetStateOfNewWatches(state);
  service.EndForward(grpc::Status::OK);
  harness.Await(0, EndpointState::kRefused, "another");
}

TEST(EndpointSet, AServiceOfTwoAddressesIsUsedByOneOfThem) {
  prometheus::Registry registry;
  TransportMetrics metrics = RefusalCounters(&registry);
  FakeExpertService one, other;
  expert::v1::EndpointState state = GoodState();
  state.set_instance_id(7);
  one.SetState(state);
  other.SetState(state);
  Harness harness({one.address()}, metrics);
  EXPECT_EQ(harness.Await(0, EndpointState::kReady).instance_id, 7u);
  harness.set().SetAddresses("pool-2", {other.address()});
  const EndpointInfo refused = harness.Await(
      1, EndpointState::kRefused, "is the service at " + one.address());
  EXPECT_EQ(refused.duplicate_of, one.address());
  EXPECT_TRUE(refused.hosted.empty());
  const auto reason = static_cast<size_t>(RefusalReason::kDuplicate);
  EXPECT_EQ(metrics.refused[reason]->Value(), 1);
  // Where the one that is used is lost, the other takes its place.
  harness.set().SetAddresses("pool", {});
  harness.AwaitThat([](const auto& all) { return all.size() == 1; });
  other.SetState(state);
  EXPECT_EQ(harness.Await(0, EndpointState::kReady).duplicate_of, "");
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
  for (size_t i = 0; i < kNumEndpointStates; ++i) {
    const auto state = static_cast<EndpointState>(i);
    metrics.endpoints.push_back(
        &family.Add({{"state", std::string(EndpointStateName(state))}}));
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

TEST(EndpointSet, AnotherNumericsIdIsNoReasonToRefuse) {
  FakeExpertService one, other;
  expert::v1::EndpointState state = GoodState();
  one.SetState(state);
  state.set_numerics_id("avx2-bf16");
  other.SetState(state);
  Harness harness({one.address(), other.address()});
  harness.Await(0, EndpointState::kReady);
  harness.Await(1, EndpointState::kReady);
}

TEST(EndpointSet, ServicesOfOneMeshHoldWeightsInOneType) {
  FakeExpertService first, other;
  first.SetState(GoodState());
  expert::v1::EndpointState state = GoodState();
  state.set_expert_dtype("f32");
  other.SetState(state);
  Harness harness({first.address()});
  harness.Await(0, EndpointState::kReady);
  harness.set().SetAddresses("pool", {first.address(), other.address()});
  harness.Await(1, EndpointState::kRefused,
                "holds weights as f32, the services in use as bf16");
  // With nobody else in use, it is the one that says what is used.
  harness.set().SetAddresses("pool", {other.address()});
  harness.AwaitThat([](const auto& all) { return all.size() == 1; });
  other.SetState(state);
  EXPECT_EQ(harness.Await(0, EndpointState::kReady).index, 1);
}

TEST(EndpointSet, TheMeshMaySayWhichTypeWeightsAreHeldIn) {
  FakeExpertService service;
  service.SetState(GoodState());
  ModelIdentity model = kModel;
  model.expert_dtype = "f32";
  Harness harness({service.address()}, {}, absl::Seconds(60), model);
  harness.Await(0, EndpointState::kRefused, "bf16");
}

TEST(EndpointSet, RowsOfInt8GoOnlyWhereTheyAreKnown) {
  FakeExpertService older, newer;
  expert::v1::EndpointState state = GoodState();
  older.SetState(state);
  state.set_int8_rows(true);
  newer.SetState(state);
  ModelIdentity model = kModel;
  model.int8_rows = true;
  Harness harness({older.address(), newer.address()}, {}, absl::Seconds(60),
                  model);
  harness.Await(0, EndpointState::kRefused, "does not know rows of int8");
  harness.Await(1, EndpointState::kReady);
}

TEST(EndpointSet, AddressesComeAndGo) {
  FakeExpertService stays, goes, comes;
  for (FakeExpertService* service : {&stays, &goes, &comes}) {
    service->SetState(GoodState());
  }
  Harness harness({stays.address(), goes.address()});
  harness.Await(0, EndpointState::kReady);
  harness.Await(1, EndpointState::kReady);
  harness.set().SetAddresses("pool", {comes.address(), stays.address()});
  EXPECT_TRUE(harness.AwaitThat([&](const std::vector<EndpointInfo>& all) {
    return all.size() == 2 && all[1].state == EndpointState::kReady;
  }));
  const std::vector<EndpointInfo> all = harness.set().Snapshot();
  EXPECT_EQ(all[0].address, stays.address());
  EXPECT_EQ(all[0].index, 0);
  EXPECT_EQ(all[1].address, comes.address());
  EXPECT_EQ(all[1].index, 2);
  // Another pool has addresses of its own.
  harness.set().SetAddresses("pool-2", {goes.address()});
  EXPECT_TRUE(harness.AwaitThat([&](const std::vector<EndpointInfo>& all) {
    return all.size() == 3 && all[2].state == EndpointState::kReady &&
           all[2].pool == "pool-2" && all[2].index == 3;
  }));
}

// A batch of one row, and its end.
class OneRow : public BatchCompletion {
 public:
  OneRow() {
    batch_.hidden_size = 1;
    batch_.num_tokens = 1;
    batch_.hidden_states = pool_.Acquire(sizeof(float));
    std::memset(batch_.hidden_states.data(), 0, sizeof(float));
    batch_.expert_ids = ids_;
    batch_.group_offsets = offsets_;
    batch_.row_token = tokens_;
  }
  void Done(const BatchAnswer& answer) override {
    MutexLock lock(&mutex_);
    status_ = answer.status;
    changed_.NotifyAll();
  }
  absl::Status Await() {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(
        changed_.WaitFor(lock, kPatience, [&] { return status_.has_value(); }));
    return *status_;
  }
  const ExpertBatch& batch() const { return batch_; }

 private:
  const std::vector<uint32_t> ids_ = {5}, offsets_ = {0, 1}, tokens_ = {0};
  PayloadPool pool_;
  ExpertBatch batch_;
  Mutex mutex_;
  CondVar changed_;
  std::optional<absl::Status> status_;
};

TEST(EndpointSet, OneThatLeavesFinishesAndMayComeBack) {
  FakeExpertService service;
  service.SetState(GoodState());
  OneRow row, next;
  Harness harness({service.address()});
  harness.Await(0, EndpointState::kReady);
  harness.set().transport()->Send(0, row.batch(), &row);
  const expert::v1::ExpertBatch batch = service.AwaitBatch();

  harness.set().SetAddresses("pool", {});
  const EndpointInfo leaving =
      harness.Await(0, EndpointState::kLeaving, "not the pool's");
  EXPECT_EQ(leaving.inflight_rows, 1u);
  // It waits until the endpoint it was is gone.
  harness.set().SetAddresses("pool", {service.address()});
  ASSERT_THAT(harness.set().Snapshot(), SizeIs(1));
  EXPECT_EQ(harness.set().Snapshot()[0].index, 0);
  // What a leaving service announces changes nothing.
  expert::v1::EndpointState state = GoodState();
  state.set_draining(true);
  service.SetState(state);
  EXPECT_EQ(harness.set().Snapshot()[0].state, EndpointState::kLeaving);
  service.SetState(GoodState());

  service.Reply(FakeExpertService::RightAnswer(batch));
  EXPECT_EQ(row.Await(), absl::OkStatus());
  EXPECT_TRUE(harness.AwaitThat([](const std::vector<EndpointInfo>& all) {
    return all.size() == 1 && all[0].index == 1 &&
           all[0].state == EndpointState::kReady;
  }));
  harness.set().transport()->Send(1, next.batch(), &next);
  service.Reply(FakeExpertService::RightAnswer(service.AwaitBatch()));
  EXPECT_EQ(next.Await(), absl::OkStatus());
}

TEST(EndpointSet, AnAddressOfTwoPoolsIsTheFirstOnes) {
  FakeExpertService service;
  service.SetState(GoodState());
  Harness harness({service.address()});
  harness.set().SetAddresses("a", {service.address()});
  EXPECT_TRUE(harness.AwaitThat([](const std::vector<EndpointInfo>& all) {
    return all.size() == 1 && all[0].pool == "a" &&
           all[0].state == EndpointState::kReady;
  }));
}

TEST(EndpointSet, EndsCleanlyWhileEndpointsLeave) {
  FakeExpertService service;
  service.SetState(GoodState());
  OneRow row;
  Harness harness({service.address(), "127.0.0.1:1"});
  harness.Await(0, EndpointState::kReady);
  harness.set().transport()->Send(0, row.batch(), &row);
  harness.set().SetAddresses("pool", {});
  harness.Stop();
  EXPECT_EQ(row.Await().code(), absl::StatusCode::kUnavailable);
}

TEST(EndpointSet, EndsCleanlyWhileConnecting) {
  Harness harness({"127.0.0.1:1", "127.0.0.1:2"});
  harness.Stop();
}

}  // namespace
}  // namespace expertmesh::router
