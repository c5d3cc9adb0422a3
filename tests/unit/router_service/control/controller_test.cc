#include "router_service/control/controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "tests/support/fake_clock.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kExperts = 4;
constexpr uint64_t kSlotBytes = 100;

bool Before(const ExpertSlot& a, const ExpertSlot& b) {
  return std::tie(a.layer, a.expert_id) < std::tie(b.layer, b.expert_id);
}

EndpointInfo Endpoint(const std::string& address,
                      const std::vector<uint32_t>& experts,
                      uint64_t budget_slots = 0) {
  EndpointInfo info;
  info.pool = kStaticPoolName;
  info.address = address;
  info.state = EndpointState::kReady;
  for (const uint32_t expert : experts) info.hosted.push_back({0, expert});
  info.memory_bytes = experts.size() * kSlotBytes;
  info.memory_budget_bytes = budget_slots * kSlotBytes;
  return info;
}

// Endpoints that obey, and announce at once what they hold.
class FakeMesh final : public ExpertOrders {
 public:
  explicit FakeMesh(std::vector<EndpointInfo> endpoints)
      : endpoints_(std::move(endpoints)) {}

  void set_controller(Controller* controller) {
    controller_ = controller;
    Announce();
  }

  void Load(const std::string& address, const std::vector<ExpertSlot>& slots,
            uint64_t epoch, Done done) override {
    Obey(absl::StrCat("+", address, ":", Experts(slots)), address, epoch, done,
         [&](std::vector<ExpertSlot>* hosted) {
           hosted->insert(hosted->end(), slots.begin(), slots.end());
         });
  }
  void Unload(const std::string& address, const std::vector<ExpertSlot>& slots,
              uint64_t epoch, Done done) override {
    Obey(absl::StrCat("-", address, ":", Experts(slots)), address, epoch, done,
         [&](std::vector<ExpertSlot>* hosted) {
           for (const ExpertSlot& slot : slots) {
             hosted->erase(std::find(hosted->begin(), hosted->end(), slot));
           }
         });
  }
  void Drain(const std::string& address, bool drain, Done done) override {
    orders.push_back(absl::StrCat(drain ? "drain " : "undo ", address));
    done(drain_status);
  }
  void CancelAll() override {
    if (held_) std::exchange(held_, nullptr)(absl::CancelledError("given up"));
  }

  EndpointInfo& endpoint(const std::string& address) {
    return *std::find_if(endpoints_.begin(), endpoints_.end(),
                         [&](const auto& e) { return e.address == address; });
  }
  void Announce() { controller_->OnEndpoints(endpoints_, numerics_id); }

  std::string numerics_id;  // of the mesh
  // What was ordered, in order.
  std::vector<std::string> orders;
  // Orders that fail, by their number, and how.
  std::map<size_t, absl::Status> failures;
  absl::Status drain_status;  // what becomes of orders to drain
  // Number of the order that is never answered.
  size_t hold = SIZE_MAX;
  std::promise<void> holding;
  // Run before an order is obeyed.
  std::function<void()> before;

 private:
  static std::string Experts(const std::vector<ExpertSlot>& slots) {
    return absl::StrJoin(slots, ",", [](std::string* out, ExpertSlot slot) {
      absl::StrAppend(out, slot.expert_id);
    });
  }

  template <typename Change>
  void Obey(const std::string& order, const std::string& address,
            uint64_t epoch, const Done& done, Change change) {
    const size_t number = orders.size();
    orders.push_back(order);
    if (before) before();
    if (number == hold) {
      held_ = done;
      holding.set_value();
      return;
    }
    const auto failure = failures.find(number);
    if (failure != failures.end()) return done(failure->second);
    EndpointInfo& info = endpoint(address);
    if (epoch < info.placement_epoch) {
      return done(absl::FailedPreconditionError("an older epoch"));
    }
    info.placement_epoch = epoch;
    change(&info.hosted);
    std::sort(info.hosted.begin(), info.hosted.end(), Before);
    info.memory_bytes = info.hosted.size() * kSlotBytes;
    Announce();
    done(absl::OkStatus());
  }

  std::vector<EndpointInfo> endpoints_;
  Controller* controller_ = nullptr;
  Done held_;
};

ControllerOptions Options() {
  ControllerOptions options;
  options.mesh.num_layers = 1;
  options.mesh.num_experts = kExperts;
  options.mesh.slot_bytes = {kSlotBytes};
  PoolConfig pool;
  pool.name = kStaticPoolName;
  options.mesh.pools = {pool};
  options.first_version = 100;
  return options;
}

// Two fixed services, and two managed ones with room for two experts.
class ControllerTest : public ::testing::Test {
 protected:
  ControllerTest()
      : mesh_({Endpoint("a", {0, 1}), Endpoint("b", {2, 3}),
               Endpoint("m", {}, 2), Endpoint("n", {}, 2)}) {
    Start(Options());
  }

  void Start(ControllerOptions options) {
    controller_.emplace(std::move(options), &mesh_, &clock_);
    mesh_.set_controller(&*controller_);
  }

  // Reports rows of the base services since they were last reported.
  void Demand(const std::vector<uint64_t>& rows) {
    for (const uint64_t factor : {0, 1}) {
      std::map<std::string, std::vector<SlotRows>> reports;
      for (uint32_t expert = 0; expert < kExperts; ++expert) {
        reports[expert < 2 ? "a" : "b"].push_back(
            {{0, expert}, factor * rows[expert]});
      }
      for (const auto& [address, report] : reports) {
        controller_->OnLoad(address, {.rows = report});
      }
    }
  }

  absl::StatusOr<PlacementProposal> Propose() {
    return Await<PlacementProposal>(
        [&](auto done) { controller_->Propose(done); });
  }
  absl::StatusOr<AppliedPlacement> Apply(uint64_t version,
                                         PlacementTarget target) {
    return Await<AppliedPlacement>(
        [&](auto done) { controller_->Apply(version, target, done); });
  }
  absl::StatusOr<AppliedPlacement> ApplyProposed(uint64_t version) {
    return Await<AppliedPlacement>(
        [&](auto done) { controller_->ApplyProposed(version, done); });
  }
  absl::StatusOr<RebalancedPlacement> Rebalance() {
    return Await<RebalancedPlacement>(
        [&](auto done) { controller_->Rebalance(done); });
  }
  template <typename Result, typename Ask>
  absl::StatusOr<Result> Await(Ask ask) {
    std::promise<absl::StatusOr<Result>> promise;
    ask([&](absl::StatusOr<Result> result) {
      promise.set_value(std::move(result));
    });
    return promise.get_future().get();
  }
  absl::Status Drain(const std::string& address, bool drain) {
    std::promise<absl::Status> promise;
    controller_->Drain(address, drain, [&](const absl::Status& status) {
      promise.set_value(status);
    });
    return promise.get_future().get();
  }
  uint64_t version() const { return controller_->placement().version; }

  FakeClock clock_;
  FakeMesh mesh_;
  std::optional<Controller> controller_;
};

TEST_F(ControllerTest, VersionGrowsWithTheContentsOnly) {
  EXPECT_EQ(version(), 101);
  mesh_.endpoint("a").queue_rows = 7;
  mesh_.Announce();
  EXPECT_EQ(version(), 101);
  int told = 0;
  controller_->OnChange([&] { ++told; });
  mesh_.endpoint("a").state = EndpointState::kDraining;
  mesh_.Announce();
  EXPECT_EQ(version(), 102);
  EXPECT_EQ(told, 1);
  controller_->OnChange(nullptr);
}

TEST_F(ControllerTest, CountsDemandOfTheWholeMesh) {
  Demand({10, 20, 30, 40});
  EXPECT_THAT(controller_->WindowRows(), ElementsAre(10, 20, 30, 40));
}

TEST_F(ControllerTest, PlansHalfTheRowsForAHostOfHalfTheSpeed) {
  constexpr uint32_t kMany = 12;
  ControllerOptions options = Options();
  options.mesh.num_experts = kMany;
  FakeMesh mesh({Endpoint("fast", {}, 8), Endpoint("slow", {}, 8)});
  Controller controller(options, &mesh, &clock_);
  mesh.set_controller(&controller);
  for (const uint64_t time : {0, 1}) {
    for (const auto& [address, busy_us] :
         {std::pair("fast", 100'000), std::pair("slow", 200'000)}) {
      EndpointLoad load;
      for (uint32_t expert = 0; expert < kMany; ++expert) {
        load.rows.push_back({{0, expert}, time * 100});
      }
      load.busy_us = time * busy_us;
      load.expert_runs = time * 50;
      controller.OnLoad(address, load);
    }
  }
  const uint64_t version = controller.placement().version;
  const auto proposal =
      Await<PlacementProposal>([&](auto done) { controller.Propose(done); });
  ASSERT_TRUE(proposal.ok()) << proposal.status();
  EXPECT_EQ(proposal->from.version, version);  // a speed alone makes no other
  EXPECT_EQ(proposal->from.hosts[0].speed, 1);
  EXPECT_EQ(proposal->from.hosts[1].speed, 0.5);
  const HostedSlots& hosted = proposal->plan.hosted;
  double slow = 0;  // in slots' rows
  for (const SlotId slot : hosted[1]) {
    const bool is_shared =
        std::binary_search(hosted[0].begin(), hosted[0].end(), slot);
    slow += is_shared ? 1.0 / 3 : 1;
  }
  EXPECT_NEAR(slow, kMany / 3.0, 0.5);
}

TEST_F(ControllerTest, ProposesCopiesOfTheHottest) {
  Demand({1000, 10, 10, 10});
  const auto proposal = Propose();
  ASSERT_TRUE(proposal.ok()) << proposal.status();
  EXPECT_LT(proposal->plan.after.slowest_over_mean,
            proposal->plan.before.slowest_over_mean);
  EXPECT_EQ(proposal->plan.hosted[2].front(), (SlotId{0, 0}));
  EXPECT_EQ(proposal->plan.hosted[3].front(), (SlotId{0, 0}));
  EXPECT_THAT(mesh_.orders, ElementsAre());
  EXPECT_EQ(version(), 101);
}

TEST_F(ControllerTest, CountsChangesOfThePlacement) {
  prometheus::Counter done, failed, moves, bytes;
  ControllerOptions options = Options();
  options.metrics = {&done, &failed, &moves, &bytes};
  Start(std::move(options));
  Demand({1000, 10, 10, 10});
  const auto rebalanced = Rebalance();
  ASSERT_TRUE(rebalanced.ok()) << rebalanced.status();
  EXPECT_EQ(done.Value(), 1);
  EXPECT_EQ(failed.Value(), 0);
  EXPECT_GT(moves.Value(), 0);
  EXPECT_EQ(moves.Value(), rebalanced->applied.made.moves);
  EXPECT_EQ(bytes.Value(), rebalanced->applied.made.bytes_loaded);

  mesh_.failures[mesh_.orders.size()] =
      absl::ResourceExhaustedError("no memory");
  EXPECT_FALSE(Apply(version(), {{"m", {{0, 3}}}}).ok());
  EXPECT_EQ(done.Value(), 1);
  EXPECT_EQ(failed.Value(), 1);
}

TEST_F(ControllerTest, RebalanceMovesWhatItProposes) {
  Demand({1000, 10, 10, 10});
  const auto done = Rebalance();
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->applied.version, version());
  EXPECT_EQ(done->applied.made.moves,
            static_cast<int>(done->proposal.plan.moves.size()));
  EXPECT_EQ(done->applied.made.bytes_loaded, done->proposal.plan.bytes_to_load);
  EXPECT_EQ(mesh_.endpoint("m").hosted.front(), (ExpertSlot{0, 0}));
  EXPECT_EQ(mesh_.endpoint("n").hosted.front(), (ExpertSlot{0, 0}));
}

// m computes as no other does.
class ControllerStandbyTest : public ControllerTest {
 protected:
  ControllerStandbyTest() {
    mesh_.endpoint("m").numerics_id = "cuda";
    mesh_.numerics_id = "";  // as with --mix-numerics
    mesh_.Announce();
  }
  void KeepToTheMeshsNumerics() {
    for (const char* address : {"a", "b", "n"}) {
      mesh_.endpoint(address).numerics_id = "cpu";
    }
    mesh_.numerics_id = "cpu";
    mesh_.Announce();
  }
};

TEST_F(ControllerStandbyTest, HotExpertsGoToHostsOfAnyNumericsWhereTheyMix) {
  Demand({1000, 10, 10, 10});
  ASSERT_TRUE(Rebalance().ok());
  EXPECT_EQ(mesh_.endpoint("m").hosted.front(), (ExpertSlot{0, 0}));
  EXPECT_EQ(mesh_.endpoint("n").hosted.front(), (ExpertSlot{0, 0}));
}

TEST_F(ControllerStandbyTest, NoneGoToThoseThatStandByOtherwise) {
  KeepToTheMeshsNumerics();
  Demand({1000, 10, 10, 10});
  const auto done = Rebalance();
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(mesh_.endpoint("m").hosted.empty());
  EXPECT_EQ(mesh_.endpoint("n").hosted.front(), (ExpertSlot{0, 0}));
  const MeshPlacement placement = controller_->placement();
  EXPECT_TRUE(placement.hosts[2].stands_by);
  EXPECT_FALSE(placement.hosts[3].stands_by);
}

TEST_F(ControllerStandbyTest, WhatTheyHoldBesidesOthersIsNoCapacity) {
  KeepToTheMeshsNumerics();
  mesh_.endpoint("m").hosted = {{0, 0}};
  mesh_.Announce();
  Demand({1000, 10, 10, 10});
  const auto proposal = Propose();
  ASSERT_TRUE(proposal.ok()) << proposal.status();
  // As if it were not there.
  EXPECT_EQ(proposal->plan.hosted[3].front(), (SlotId{0, 0}));
  EXPECT_THAT(proposal->plan.hosted[2], ElementsAre(SlotId{0, 0}));
}

TEST_F(ControllerStandbyTest, TheyServeWhereNoOtherCan) {
  KeepToTheMeshsNumerics();
  mesh_.endpoint("n").state = EndpointState::kConnecting;
  mesh_.endpoint("b").state = EndpointState::kConnecting;
  mesh_.Announce();
  const auto done = Rebalance();
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_THAT(mesh_.endpoint("m").hosted,
              ElementsAre(ExpertSlot{0, 2}, ExpertSlot{0, 3}));
}

TEST_F(ControllerStandbyTest, ADrainPrefersTheMeshsOwn) {
  KeepToTheMeshsNumerics();
  ASSERT_TRUE(Drain("a", true).ok());
  EXPECT_TRUE(mesh_.endpoint("m").hosted.empty());
  EXPECT_THAT(mesh_.endpoint("n").hosted,
              ElementsAre(ExpertSlot{0, 0}, ExpertSlot{0, 1}));
  ASSERT_TRUE(Drain("b", true).ok());
  EXPECT_THAT(mesh_.endpoint("m").hosted,
              ElementsAre(ExpertSlot{0, 2}, ExpertSlot{0, 3}));
}

TEST_F(ControllerStandbyTest, AnOperatorMayPlaceThereAllTheSame) {
  KeepToTheMeshsNumerics();
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 1}}}}).ok());
  EXPECT_THAT(mesh_.endpoint("m").hosted, ElementsAre(ExpertSlot{0, 1}));
}

TEST_F(ControllerTest, AppliesTheLastProposalOnce) {
  EXPECT_EQ(ApplyProposed(version()).status().code(),
            absl::StatusCode::kAborted);
  Demand({1000, 10, 10, 10});
  ASSERT_TRUE(Propose().ok());
  const uint64_t proposed = version();
  const auto applied = ApplyProposed(proposed);
  ASSERT_TRUE(applied.ok()) << applied.status();
  EXPECT_GT(applied->made.moves, 0);
  EXPECT_EQ(ApplyProposed(proposed).status().code(),
            absl::StatusCode::kAborted);
}

TEST_F(ControllerTest, AppliesAnExplicitPlacement) {
  const auto applied = Apply(version(), {{"m", {{0, 3}, {0, 1}}}});
  ASSERT_TRUE(applied.ok()) << applied.status();
  EXPECT_EQ(applied->made.moves, 2);
  EXPECT_EQ(applied->made.bytes_loaded, 2 * kSlotBytes);
  // Loaded at the new place before it is given up at the old one.
  ASSERT_TRUE(Apply(version(), {{"m", {}}, {"n", {{0, 3}}}}).ok());
  EXPECT_THAT(mesh_.orders, ElementsAre("+m:1,3", "+n:3", "-m:1,3"));
}

TEST_F(ControllerTest, RefusesAStaleVersion) {
  const auto applied = Apply(version() - 1, {{"m", {{0, 1}}}});
  EXPECT_EQ(applied.status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(applied.status().message(), HasSubstr("101, not 100"));
  EXPECT_THAT(mesh_.orders, ElementsAre());
}

TEST_F(ControllerTest, RefusesWhatMayNotBe) {
  using Code = absl::StatusCode;
  const std::vector<std::tuple<PlacementTarget, Code>> cases = {
      {{{"a", {{0, 0}}}}, Code::kFailedPrecondition},  // fixed
      {{{"m", {{0, 0}, {0, 1}, {0, 2}}}}, Code::kFailedPrecondition},
      {{{"m", {{0, 0}, {0, 0}}}}, Code::kInvalidArgument},
      {{{"m", {{0, 4}}}}, Code::kInvalidArgument},
      {{{"m", {{1, 0}}}}, Code::kInvalidArgument},
      {{{"x", {{0, 0}}}}, Code::kInvalidArgument}};
  for (const auto& [target, code] : cases) {
    EXPECT_EQ(Apply(version(), target).status().code(), code);
  }
  EXPECT_THAT(mesh_.orders, ElementsAre());
}

TEST_F(ControllerTest, RefusesToUncoverAnExpert) {
  // Now the managed service has the only copies of experts 0 and 1.
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 0}, {0, 1}}}}).ok());
  mesh_.endpoint("a").state = EndpointState::kConnecting;
  mesh_.Announce();
  mesh_.orders.clear();
  const auto applied = Apply(version(), {{"m", {{0, 1}, {0, 2}}}});
  EXPECT_EQ(applied.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(mesh_.orders, ElementsAre());
}

TEST_F(ControllerTest, AFailureMidwayEndsTheChangeAndSaysHowFarItCame) {
  mesh_.failures[1] = absl::ResourceExhaustedError("no memory");
  const PlacementTarget target = {{"m", {{0, 0}}}, {"n", {{0, 1}, {0, 2}}}};
  const auto applied = Apply(version(), target);
  EXPECT_EQ(applied.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(applied.status().message()),
              HasSubstr("after 1 of 3 moves: n could not load expert 1 of "
                        "layer 0 and 1 more: no memory"));
  EXPECT_EQ(mesh_.orders.size(), 2);
  // What came after can be tried again.
  mesh_.failures.clear();
  EXPECT_TRUE(Apply(version(), target).ok());
}

TEST_F(ControllerTest, UnloadsNothingWhoseOtherCopyWasLostMeanwhile) {
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 0}, {0, 1}}}}).ok());
  mesh_.orders.clear();
  // Loads go first; while the one below runs, the base service is lost.
  mesh_.before = [this] {
    mesh_.endpoint("a").state = EndpointState::kConnecting;
  };
  const auto applied = Apply(version(), {{"m", {{0, 1}}}, {"n", {{0, 2}}}});
  EXPECT_EQ(applied.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(mesh_.orders, ElementsAre("+n:2"));
}

TEST_F(ControllerTest, ALostHostEndsTheChange) {
  mesh_.before = [this] {
    mesh_.endpoint("m").state = EndpointState::kConnecting;
  };
  const auto applied = Apply(version(), {{"m", {{0, 0}}}});
  EXPECT_EQ(applied.status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ControllerTest, ARestartedControllerGoesOnWithEpochs) {
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 0}}}}).ok());
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 1}}}}).ok());
  EXPECT_EQ(controller_->placement().epoch, 2);
  Start(Options());
  EXPECT_EQ(controller_->placement().epoch, 2);
  ASSERT_TRUE(Apply(version(), {{"n", {{0, 0}}}}).ok());
  EXPECT_EQ(mesh_.endpoint("n").placement_epoch, 3);
  EXPECT_EQ(mesh_.endpoint("m").placement_epoch, 2);
}

TEST_F(ControllerTest, ANewerControllersServicesEndTheChange) {
  // Obeyed somebody else since it was last heard of.
  mesh_.before = [this] { mesh_.endpoint("m").placement_epoch = 7; };
  const auto stale = Apply(version(), {{"m", {{0, 0}}}});
  EXPECT_EQ(stale.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(stale.status().message()), HasSubstr("older epoch"));
  EXPECT_THAT(mesh_.endpoint("m").hosted, ElementsAre());
}

// Neither order shows in the mesh yet.
TEST_F(ControllerTest, DrainsNotTwoThatReplaceEachOther) {
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 0}, {0, 1}}}}).ok());
  mesh_.endpoint("n").state = EndpointState::kConnecting;  // has no room
  mesh_.Announce();
  EXPECT_TRUE(Drain("a", true).ok());
  EXPECT_EQ(Drain("m", true).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Drain("a", false).ok());
  EXPECT_TRUE(Drain("m", true).ok());
}

TEST_F(ControllerTest, DrainsWhatOthersCanReplace) {
  EXPECT_EQ(Drain("x", true).code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 0}, {0, 1}}}}).ok());
  mesh_.orders.clear();
  EXPECT_TRUE(Drain("a", true).ok());
  EXPECT_EQ(controller_->placement().hosts.size(), 3);  // at once
  EXPECT_TRUE(Drain("a", false).ok());
  EXPECT_EQ(controller_->placement().hosts.size(), 4);
  EXPECT_THAT(mesh_.orders, ElementsAre("drain a", "undo a"));
}

TEST_F(ControllerTest, DrainsNoServiceByAnAddressItIsNotUsedBy) {
  mesh_.endpoint("n").state = EndpointState::kRefused;
  mesh_.endpoint("n").duplicate_of = "a";
  mesh_.Announce();
  EXPECT_EQ(Drain("n", true).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(mesh_.orders, ElementsAre());
}

TEST_F(ControllerTest, LoadsElsewhereFirstWhatADrainedServiceAloneHolds) {
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 0}, {0, 2}}}}).ok());
  mesh_.orders.clear();
  EXPECT_TRUE(Drain("a", true).ok());
  EXPECT_THAT(mesh_.orders, ElementsAre("+n:1", "drain a"));
  mesh_.endpoint("a").state = EndpointState::kDraining;
  mesh_.Announce();
  // A managed one too; 0 finds room beside 1, and 2 is the base's.
  EXPECT_TRUE(Drain("m", true).ok());
  EXPECT_THAT(mesh_.orders, ElementsAre("+n:1", "drain a", "+n:0", "drain m"));
}

TEST_F(ControllerTest, DrainsNotWhatNobodyHasRoomFor) {
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 2}, {0, 3}}}}).ok());
  // The base that holds those two is lost, so m has them alone.
  mesh_.endpoint("b").state = EndpointState::kConnecting;
  mesh_.endpoint("n").memory_budget_bytes = kSlotBytes;
  mesh_.Announce();
  mesh_.orders.clear();
  const uint64_t before = version();
  const absl::Status status = Drain("a", true);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("no other service has room for expert 1 of layer 0, "
                        "which a alone holds, nor for 0 more"));
  EXPECT_THAT(mesh_.orders, ElementsAre());
  EXPECT_EQ(version(), before);
}

TEST_F(ControllerTest, AServiceThatRefusesToDrainStays) {
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 0}, {0, 1}}}}).ok());
  mesh_.drain_status = absl::UnavailableError("gone");
  EXPECT_EQ(Drain("a", true), mesh_.drain_status);
  EXPECT_EQ(controller_->placement().hosts.size(), 4);
}

// The mesh does not show yet that it drains.
TEST_F(ControllerTest, UnloadsNothingWhoseOtherHostWasJustDrained) {
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 0}, {0, 1}}}}).ok());
  mesh_.orders.clear();
  mesh_.before = [this] {
    mesh_.before = nullptr;
    EXPECT_TRUE(Drain("a", true).ok());
  };
  const auto applied = Apply(version(), {{"m", {{0, 1}}}, {"n", {{0, 2}}}});
  EXPECT_EQ(applied.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(mesh_.orders, ElementsAre("+n:2", "drain a"));
}

TEST_F(ControllerTest, DrainsNothingThatAnUnloadUnderWayReliesOn) {
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 0}, {0, 1}}}}).ok());
  mesh_.orders.clear();
  std::promise<absl::Status> drained;
  mesh_.before = [&] {
    mesh_.before = nullptr;
    controller_->Drain("a", true, [&](const absl::Status& status) {
      drained.set_value(status);
    });
  };
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 1}}}}).ok());
  EXPECT_TRUE(drained.get_future().get().ok());
  // What m gave up is loaded again before a goes.
  EXPECT_EQ(mesh_.orders.front(), "-m:0");
  EXPECT_EQ(mesh_.orders.size(), 3);
  EXPECT_THAT(mesh_.orders[1], ::testing::MatchesRegex("\\+[mn]:0"));
  EXPECT_EQ(mesh_.orders.back(), "drain a");
}

// The drain waits for the change below, and is taken back meanwhile.
TEST_F(ControllerTest, ADrainTakenBackBeforeItsTurnDoesNothing) {
  std::promise<absl::Status> drained;
  mesh_.before = [&] {
    mesh_.before = nullptr;
    controller_->Drain("a", true, [&](const absl::Status& status) {
      drained.set_value(status);
    });
    EXPECT_TRUE(Drain("a", false).ok());
  };
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 2}}}}).ok());
  EXPECT_EQ(drained.get_future().get().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(mesh_.orders, ElementsAre("+m:2", "undo a"));
  EXPECT_EQ(controller_->placement().hosts.size(), 4);
  // The next one is another.
  EXPECT_TRUE(Drain("a", true).ok());
  EXPECT_EQ(mesh_.orders.back(), "drain a");
}

TEST_F(ControllerTest, ADrainTakenBackWhileItLoadsElsewhereIsNotOrdered) {
  mesh_.before = [&] {
    mesh_.before = nullptr;
    EXPECT_TRUE(Drain("a", false).ok());
  };
  EXPECT_EQ(Drain("a", true).code(), absl::StatusCode::kAborted);
  EXPECT_THAT(mesh_.orders, ::testing::Contains("undo a"));
  EXPECT_THAT(mesh_.orders, ::testing::Not(::testing::Contains("drain a")));
  EXPECT_EQ(controller_->placement().hosts.size(), 4);
}

TEST_F(ControllerTest, DrainsNothingAfterStop) {
  ASSERT_TRUE(Apply(version(), {{"m", {{0, 0}, {0, 1}}}}).ok());
  mesh_.orders.clear();
  controller_->Stop();
  EXPECT_EQ(Drain("a", true).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Drain("a", false).code(), absl::StatusCode::kUnavailable);
  // This one would have to load something first.
  EXPECT_EQ(Drain("b", true).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(mesh_.orders, ElementsAre());
}

TEST_F(ControllerTest, StopGivesUpWhatGoesOnAndWhatWaits) {
  mesh_.hold = 0;
  std::promise<absl::Status> running, waiting;
  controller_->Apply(version(), {{"m", {{0, 0}}}},
                     [&](const auto& r) { running.set_value(r.status()); });
  mesh_.holding.get_future().wait();
  controller_->Propose([&](const auto& r) { waiting.set_value(r.status()); });
  controller_->Stop();
  EXPECT_EQ(running.get_future().get().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(waiting.get_future().get().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Propose().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ControllerTest, RefusesMoreRequestsThanMayWait) {
  mesh_.hold = 0;
  std::promise<absl::Status> running;
  controller_->Apply(version(), {{"m", {{0, 0}}}},
                     [&](const auto& r) { running.set_value(r.status()); });
  mesh_.holding.get_future().wait();
  for (size_t i = 0; i < Controller::kMaxRequests; ++i) {
    controller_->Propose([](const auto&) {});
  }
  EXPECT_EQ(Propose().status().code(), absl::StatusCode::kResourceExhausted);
  controller_->Stop();
}

TEST_F(ControllerTest, RebalancesByItself) {
  ControllerOptions options = Options();
  options.auto_rebalance = true;
  options.rebalance_interval = absl::Milliseconds(5);
  options.rebalance.min_windows = 2;
  Start(std::move(options));
  std::promise<void> filled;
  std::set<std::string> holders;
  controller_->OnChange([&] {
    for (const PlacementHost& host : controller_->placement().hosts) {
      if (!host.managed || host.hosted.empty()) continue;
      if (host.hosted.front() != SlotId{0, 0}) continue;
      if (holders.insert(host.id).second && holders.size() == 2) {
        filled.set_value();
      }
    }
  });
  Demand({1000, 10, 10, 10});
  filled.get_future().wait();
  controller_->OnChange(nullptr);
  controller_->Stop();
}

// Each request is still at work when the next look is due.
TEST_F(ControllerTest, SteadyRequestsDoNotKeepItFromRebalancing) {
  ControllerOptions options = Options();
  options.auto_rebalance = true;
  options.rebalance_interval = absl::Milliseconds(5);
  options.rebalance.min_windows = 2;
  Start(options);
  std::promise<void> ordered;
  mesh_.before = [&, is_done = false]() mutable {
    if (!std::exchange(is_done, true)) ordered.set_value();
  };
  Demand({1000, 10, 10, 10});
  std::function<void()> ask = [&] {
    controller_->Propose([&](const auto& proposal) {
      if (!proposal.ok()) return;  // stopped
      ask();
      absl::SleepFor(2 * options.rebalance_interval);
    });
  };
  ask();
  EXPECT_EQ(ordered.get_future().wait_for(std::chrono::seconds(30)),
            std::future_status::ready);
  controller_->Stop();
}

TEST_F(ControllerTest, CoversEveryExpertWithoutWaitingForWindows) {
  ControllerOptions options = Options();
  options.auto_rebalance = true;
  options.rebalance_interval = absl::Milliseconds(5);
  options.rebalance.min_windows = 1000000;
  options.rebalance.urgent_after = absl::ZeroDuration();
  mesh_.endpoint("a").state = EndpointState::kConnecting;
  Start(std::move(options));
  std::promise<void> covered;
  controller_->OnChange([&, is_done = false]() mutable {
    std::set<SlotId> slots;
    for (const PlacementHost& host : controller_->placement().hosts) {
      slots.insert(host.hosted.begin(), host.hosted.end());
    }
    if (slots.size() == kExperts && !is_done) {
      is_done = true;
      covered.set_value();
    }
  });
  covered.get_future().wait();
  controller_->OnChange(nullptr);
  ASSERT_TRUE(Propose().ok());  // its turn comes when the run is over
  controller_->Stop();
  // What would only make hosts more even is left.
  EXPECT_EQ(mesh_.orders.size(), 2u);
}

TEST_F(ControllerTest, LeavesAServiceThatRestartsTheTimeToComeBack) {
  ControllerOptions options = Options();
  options.auto_rebalance = true;
  options.rebalance_interval = absl::Milliseconds(5);
  options.rebalance.urgent_after = absl::Seconds(5);
  mesh_.endpoint("a").state = EndpointState::kConnecting;
  Start(std::move(options));
  const auto looks = [&] {
    for (int i = 0; i < 5; ++i) {
      absl::SleepFor(absl::Milliseconds(5));
      ASSERT_TRUE(Propose().ok());  // after a look that was due
    }
  };
  looks();
  clock_.Advance(absl::Seconds(3));
  mesh_.endpoint("a").state = EndpointState::kReady;
  mesh_.Announce();
  looks();
  clock_.Advance(absl::Seconds(3));
  looks();
  controller_->Stop();
  EXPECT_THAT(mesh_.orders, ElementsAre());
}

}  // namespace
}  // namespace expertmesh::router
