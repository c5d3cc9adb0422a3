#include "router_service/control/load_window.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/fake_clock.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

class LoadWindowTest : public ::testing::Test {
 protected:
  // A window of 10 s in steps of 1 s, one layer of three experts.
  LoadWindowTest()
      : window_({.num_layers = 1,
                 .num_experts = 3,
                 .window = absl::Seconds(10),
                 .num_buckets = 10},
                &clock_) {}

  // Each run of an expert is for one row and takes 10 µs.
  void Observe(const std::string& endpoint, std::vector<uint64_t> rows) {
    std::vector<SlotCounter> counters;
    for (size_t e = 0; e < rows.size(); ++e) {
      counters.push_back({{0, static_cast<int32_t>(e)}, rows[e]});
    }
    const uint64_t runs = std::accumulate(rows.begin(), rows.end(), uint64_t{});
    window_.Observe(endpoint, counters, {.busy_us = 10 * runs, .runs = runs});
  }

  // What Observe made of this many rows.
  static HostWork Did(uint64_t rows) {
    return {rows, rows, absl::Microseconds(10 * rows)};
  }

  FakeClock clock_;
  LoadWindow window_;
};

TEST_F(LoadWindowTest, FirstReportOnlySetsTheCounters) {
  Observe("a", {1000, 2000, 3000});
  EXPECT_THAT(window_.Rows(), ElementsAre(0, 0, 0));
  Observe("a", {1001, 2002, 3000});
  EXPECT_THAT(window_.Rows(), ElementsAre(1, 2, 0));
}

TEST_F(LoadWindowTest, AddsEndpointsAndForgetsWhatLeftTheWindow) {
  Observe("a", {0, 0, 0});
  Observe("b", {0, 0, 0});
  Observe("a", {5, 0, 0});
  clock_.Advance(absl::Seconds(4));
  Observe("b", {1, 7, 0});
  EXPECT_THAT(window_.Rows(), ElementsAre(6, 7, 0));
  EXPECT_THAT(window_.EndpointWork(),
              ElementsAre(Pair("a", Did(5)), Pair("b", Did(8))));
  clock_.Advance(absl::Seconds(5));
  EXPECT_THAT(window_.Rows(), ElementsAre(6, 7, 0));
  clock_.Advance(absl::Seconds(1));
  EXPECT_THAT(window_.Rows(), ElementsAre(1, 7, 0));
  EXPECT_THAT(window_.EndpointWork(),
              ElementsAre(Pair("a", Did(0)), Pair("b", Did(8))));
  clock_.Advance(absl::Hours(1));
  EXPECT_THAT(window_.Rows(), ElementsAre(0, 0, 0));
  Observe("b", {1, 9, 0});
  EXPECT_THAT(window_.Rows(), ElementsAre(0, 2, 0));
}

TEST_F(LoadWindowTest, CounterThatWentDownStartsAgain) {
  Observe("a", {100, 100, 0});
  Observe("a", {110, 100, 0});
  Observe("a", {3, 2, 0});  // restarted
  EXPECT_THAT(window_.Rows(), ElementsAre(13, 2, 0));
  EXPECT_THAT(window_.EndpointWork(), ElementsAre(Pair("a", Did(15))));
  Observe("a", {4, 2, 1});
  EXPECT_THAT(window_.Rows(), ElementsAre(14, 2, 1));
}

TEST_F(LoadWindowTest, SlotsNotNamedKeepTheirCounters) {
  Observe("a", {10, 10, 10});
  window_.Observe("a", {{{0, 0}, 11}});
  Observe("a", {11, 12, 10});
  EXPECT_THAT(window_.Rows(), ElementsAre(1, 2, 0));
}

TEST_F(LoadWindowTest, IgnoresSlotsOutsideTheModel) {
  Observe("a", {0, 0, 0});
  window_.Observe("a", {{{0, 3}, 5}, {{1, 0}, 5}, {{-1, 0}, 5}, {{0, -1}, 5}});
  EXPECT_THAT(window_.Rows(), ElementsAre(0, 0, 0));
}

TEST_F(LoadWindowTest, RowsOfAnEndpointThatIsGoneWereDemandAllTheSame) {
  Observe("a", {0, 0, 0});
  Observe("a", {5, 0, 0});
  window_.Forget("a");
  window_.Forget("never seen");
  EXPECT_THAT(window_.Rows(), ElementsAre(5, 0, 0));
  EXPECT_THAT(window_.EndpointWork(), IsEmpty());
  Observe("a", {9, 0, 0});  // as new
  EXPECT_THAT(window_.Rows(), ElementsAre(5, 0, 0));
}

TEST_F(LoadWindowTest, CoversNoMoreThanThereAreReportsFor) {
  EXPECT_EQ(window_.Covered(), absl::ZeroDuration());
  Observe("a", {0, 0, 0});
  EXPECT_EQ(window_.Covered(), absl::ZeroDuration());
  clock_.Advance(absl::Seconds(3));
  EXPECT_EQ(window_.Covered(), absl::Seconds(3));
  clock_.Advance(absl::Milliseconds(20500));
  EXPECT_EQ(window_.Covered(), absl::Milliseconds(9500));
}

}  // namespace
}  // namespace expertmesh::router
