#include "router_service/control/scale_monitor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/gauge.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/support/fake_clock.h"

namespace expertmesh::router {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class ScaleMonitorTest : public ::testing::Test {
 protected:
  ScaleMonitorTest() { Restart(); }

  // A monitor without memory.
  void Restart() {
    ScaleMonitorOptions options;
    options.window = absl::Seconds(10);
    options.signal.scale_down_window = absl::Seconds(60);
    PoolScaleMetrics metrics{&demand_, &utilization_, &desired_, &replicas_};
    monitor_ = std::make_unique<ScaleMonitor>(
        options,
        std::vector<ScalePool>{{"hot", 1, 8, metrics}, {"base", 2, 2, {}}},
        &clock_);
  }

  EndpointInfo& Add(const std::string& pool,
                    EndpointState state = EndpointState::kReady) {
    EndpointInfo info;
    info.index = static_cast<int>(endpoints_.size());
    info.pool = pool;
    info.state = state;
    endpoints_.push_back(info);
    return endpoints_.back();
  }

  // One second of work of a service.
  static void Work(EndpointInfo* info, uint64_t rows, double busy) {
    info->served_rows += rows;
    info->busy_us += static_cast<uint64_t>(busy * 1e6);
  }

  void Observe() { monitor_->Observe(endpoints_); }
  void Pass(int seconds = 1) { clock_.Advance(absl::Seconds(seconds)); }
  ScaleRecommendation Hot() const {
    return monitor_->Pools()[0].recommendation;
  }

  FakeClock clock_;
  prometheus::Gauge demand_, utilization_, desired_, replicas_;
  std::vector<EndpointInfo> endpoints_;
  std::unique_ptr<ScaleMonitor> monitor_;
};

TEST_F(ScaleMonitorTest, SaysSomethingBeforeItHasSeenAny) {
  ASSERT_THAT(monitor_->Pools(), SizeIs(2));
  EXPECT_EQ(monitor_->Pools()[1].pool, "base");
  EXPECT_EQ(monitor_->Pools()[1].recommendation.desired_replicas, 2);
  EXPECT_EQ(Hot().desired_replicas, 1);
  EXPECT_EQ(Hot().current_replicas, 0);
  EXPECT_EQ(desired_.Value(), 1);
}

TEST_F(ScaleMonitorTest, RatesAreSumsOverThePoolAndMeansOverTheWindow) {
  Add("hot");
  Add("hot");
  Add("base");
  // Counted long before.
  Work(&endpoints_[0], 1'000'000, 5000);
  Observe();
  for (int i = 0; i < 10; ++i) {
    Pass();
    Work(&endpoints_[0], 300, 0.9);
    Work(&endpoints_[1], 100, 0.7);
    Work(&endpoints_[2], 5000, 1);
    Observe();
  }
  EXPECT_DOUBLE_EQ(Hot().demand_rows_per_second, 400);
  EXPECT_NEAR(Hot().utilisation, 0.8, 1e-9);
  EXPECT_EQ(Hot().current_replicas, 2);
  EXPECT_EQ(Hot().desired_replicas, 3);  // ceil(1.6 / 0.7)
  EXPECT_THAT(Hot().reason, HasSubstr("demand 400 rows/s"));
  EXPECT_DOUBLE_EQ(demand_.Value(), 400);
  EXPECT_NEAR(utilization_.Value(), 0.8, 1e-9);
  EXPECT_EQ(desired_.Value(), 3);
  EXPECT_EQ(replicas_.Value(), 2);

  // Half a window of idling, then another half.
  for (const double busy : {0.4, 0.0}) {
    for (int i = 0; i < 5; ++i) {
      Pass();
      Observe();
    }
    EXPECT_NEAR(Hot().utilisation, busy, 1e-9);
  }
  EXPECT_EQ(Hot().desired_replicas, 2);
  EXPECT_THAT(Hot().reason, HasSubstr("kept at 2"));
  Pass(60);
  Observe();
  EXPECT_EQ(Hot().desired_replicas, 1);
}

TEST_F(ScaleMonitorTest, AGrowingQueueIsDemandThatIsNotServed) {
  Add("hot");
  Observe();
  Pass();
  Work(&endpoints_[0], 100, 1);
  endpoints_[0].queue_rows = 200;
  Observe();
  EXPECT_DOUBLE_EQ(Hot().demand_rows_per_second, 300);
  EXPECT_DOUBLE_EQ(Hot().utilisation, 3);
  EXPECT_EQ(Hot().desired_replicas, 5);  // ceil(3 / 0.7)
}

TEST_F(ScaleMonitorTest, AShrinkingQueueIsLessDemandThanIsServed) {
  Add("hot").queue_rows = 50;
  Observe();
  Pass();
  Work(&endpoints_[0], 100, 1);
  endpoints_[0].queue_rows = 0;
  Observe();
  EXPECT_DOUBLE_EQ(Hot().demand_rows_per_second, 50);
  EXPECT_DOUBLE_EQ(Hot().utilisation, 1);
}

TEST_F(ScaleMonitorTest, ARestartedServiceIsMeasuredAnew) {
  Add("hot");
  Work(&endpoints_[0], 1000, 100);
  Observe();
  Pass();
  endpoints_[0].served_rows = 10;
  endpoints_[0].busy_us = 0;
  Observe();
  EXPECT_EQ(Hot().demand_rows_per_second, 0);
  Pass();
  Work(&endpoints_[0], 20, 0.1);
  Observe();
  EXPECT_DOUBLE_EQ(Hot().demand_rows_per_second, 20);
}

TEST_F(ScaleMonitorTest, WhatHappenedOutOfSightIsNoDemandOfNow) {
  Add("hot");
  Observe();
  Pass();
  endpoints_[0].state = EndpointState::kConnecting;
  Observe();
  EXPECT_EQ(Hot().current_replicas, 0);
  Pass(2);
  endpoints_[0].state = EndpointState::kReady;
  Work(&endpoints_[0], 9000, 2);
  Observe();
  EXPECT_EQ(Hot().current_replicas, 1);
  EXPECT_EQ(Hot().demand_rows_per_second, 0);
  EXPECT_EQ(Hot().utilisation, 0);
}

TEST_F(ScaleMonitorTest, OneThatDrainsIsWorkWithoutAReplica) {
  Add("hot");
  Add("hot", EndpointState::kDraining);
  Observe();
  Pass();
  Work(&endpoints_[0], 100, 0.6);
  Work(&endpoints_[1], 100, 0.6);
  Observe();
  EXPECT_EQ(Hot().current_replicas, 1);
  EXPECT_DOUBLE_EQ(Hot().demand_rows_per_second, 200);
  EXPECT_NEAR(Hot().utilisation, 1.2, 1e-9);
  EXPECT_EQ(Hot().desired_replicas, 2);
}

TEST_F(ScaleMonitorTest, WhatIsNotHeardOfIsNotTakenAway) {
  for (int i = 0; i < 3; ++i) Add("hot", EndpointState::kConnecting);
  Add("hot", EndpointState::kRefused);
  Add("hot", EndpointState::kLeaving);
  Observe();  // as after a restart
  EXPECT_EQ(Hot().current_replicas, 0);
  EXPECT_EQ(Hot().desired_replicas, 3);
  for (int i = 0; i < 3; ++i) endpoints_[i].state = EndpointState::kReady;
  Observe();
  EXPECT_EQ(Hot().desired_replicas, 3);
  Pass();
  endpoints_[1].state = EndpointState::kConnecting;
  endpoints_[2].state = EndpointState::kDraining;
  Observe();
  EXPECT_EQ(Hot().current_replicas, 1);
  EXPECT_EQ(Hot().desired_replicas, 3);
  Pass(60);
  Observe();
  EXPECT_EQ(Hot().desired_replicas, 1);
}

TEST_F(ScaleMonitorTest, AMonitorThatStartsTakesNothingAway) {
  for (int i = 0; i < 4; ++i) {
    Add("hot");
    Observe();
    EXPECT_EQ(Hot().desired_replicas, i + 1);
  }
  Restart();
  Observe();
  EXPECT_EQ(Hot().desired_replicas, 4);
  Pass(60);
  Observe();
  EXPECT_EQ(Hot().desired_replicas, 1);
}

}  // namespace
}  // namespace expertmesh::router
