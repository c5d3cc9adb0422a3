#include "router_service/control/host_speeds.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace expertmesh::router {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;

// `rows` and `runs` in a second of computing.
HostWork Work(double rows, double runs) {
  return {static_cast<uint64_t>(rows), static_cast<uint64_t>(runs),
          absl::Seconds(1)};
}

std::vector<PlacementHost> Hosts(const std::vector<std::string>& ids,
                                 const std::string& pool = "p") {
  std::vector<PlacementHost> hosts(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    hosts[i].id = ids[i];
    hosts[i].pool = pool;
  }
  return hosts;
}

std::vector<double> Speeds(const HostSpeeds& speeds,
                           std::vector<PlacementHost> hosts) {
  speeds.Fill(&hosts);
  std::vector<double> out;
  for (const PlacementHost& host : hosts) out.push_back(host.speed);
  return out;
}

TEST(HostSpeedsTest, AreRelativeToTheMedianHost) {
  HostSpeeds speeds;
  EXPECT_THAT(Speeds(speeds, Hosts({"a", "b"})), ElementsAre(1, 1));
  speeds.Update({{"a", Work(1000, 500)},
                 {"b", Work(2000, 1000)},
                 {"c", Work(2000, 1000)},
                 {"d", Work(8000, 4000)}});
  EXPECT_THAT(Speeds(speeds, Hosts({"a", "b", "c", "d"})),
              ElementsAre(0.5, 1, 1, 4));
}

TEST(HostSpeedsTest, OfTwoTheFasterIsTheMeasure) {
  HostSpeeds speeds;
  speeds.Update({{"a", Work(1000, 500)}, {"b", Work(2000, 1000)}});
  EXPECT_THAT(Speeds(speeds, Hosts({"a", "b"})), ElementsAre(0.5, 1));
}

// The experts of c get more rows at a time, which costs little more.
TEST(HostSpeedsTest, HotExpertsMakeNoHostFast) {
  HostSpeeds speeds;
  speeds.Update(
      {{"a", Work(1000, 500)}, {"b", Work(1000, 500)}, {"c", Work(3000, 480)}});
  EXPECT_THAT(Speeds(speeds, Hosts({"a", "b", "c"})), ElementsAre(1, 1, 1));
  // As far as both ways of counting say so, it is.
  speeds.Update({{"a", Work(1000, 500)},
                 {"b", Work(1000, 500)},
                 {"c", Work(6000, 1000)}});
  EXPECT_THAT(Speeds(speeds, Hosts({"a", "b", "c"})), ElementsAre(1, 1, 2));
}

TEST(HostSpeedsTest, NoiseOfAFifthChangesNothing) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> noise(0.81, 1.19);
  HostSpeeds speeds;
  const auto measure = [&] {
    LoadWindow::Work work = {{"a", Work(1000, 500)}, {"b", Work(1000, 500)}};
    const double factor = 0.5 * noise(random);
    work["c"] = Work(1000 * factor, 500 * factor);
    // An equal one.
    const double other = noise(random);
    work["d"] = Work(1000 * other, 500 * other);
    speeds.Update(work);
    return Speeds(speeds, Hosts({"c", "d"}));
  };
  const std::vector<double> first = measure();
  EXPECT_THAT(first, ElementsAre(DoubleNear(0.5, 0.1), 1));
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(measure(), first);
}

TEST(HostSpeedsTest, FollowsAChange) {
  HostSpeeds speeds;
  speeds.Update({{"a", Work(1000, 500)}, {"b", Work(1000, 500)}});
  EXPECT_THAT(Speeds(speeds, Hosts({"a", "b"})), ElementsAre(1, 1));
  speeds.Update({{"a", Work(300, 150)}, {"b", Work(1000, 500)}});
  EXPECT_THAT(Speeds(speeds, Hosts({"a", "b"})), ElementsAre(0.3, 1));
  speeds.Update({{"a", Work(1000, 500)}, {"b", Work(1000, 500)}});
  EXPECT_THAT(Speeds(speeds, Hosts({"a", "b"})), ElementsAre(1, 1));
}

TEST(HostSpeedsTest, IdleOnesKeepTheirSpeedAndNewOnesAreAsTheirPool) {
  HostSpeeds speeds;
  const auto update = [&](HostWork a) {
    speeds.Update({{"a", a},
                   {"b", Work(1000, 500)},
                   {"c", Work(1000, 500)},
                   {"new", {}}});
  };
  update(Work(4000, 2000));
  std::vector<PlacementHost> hosts = Hosts({"a", "new"}, "fast");
  hosts.push_back(Hosts({"elsewhere"}, "other").front());
  EXPECT_THAT(Speeds(speeds, hosts), ElementsAre(4, 4, 1));
  update({});  // nothing in this window
  EXPECT_THAT(Speeds(speeds, hosts), ElementsAre(4, 4, 1));
  update({.rows = 1, .runs = 1, .busy = absl::Milliseconds(1)});  // too little
  EXPECT_THAT(Speeds(speeds, hosts), ElementsAre(4, 4, 1));
  speeds.Update({{"b", Work(1000, 500)}});  // gone
  EXPECT_THAT(Speeds(speeds, hosts), ElementsAre(1, 1, 1));
}

TEST(HostSpeedsTest, AreClampedAndAlwaysPositive) {
  HostSpeeds speeds;
  speeds.Update({{"a", Work(1, 1)},
                 {"b", Work(1000000, 500000)},
                 {"c", Work(1000, 500)},
                 {"no runs", Work(1000, 0)}});
  EXPECT_THAT(Speeds(speeds, Hosts({"a", "b", "c", "no runs"})),
              ElementsAre(1 / HostSpeeds::kMost, HostSpeeds::kMost, 1, 1));
}

}  // namespace
}  // namespace expertmesh::router
