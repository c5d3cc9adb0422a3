#include "router_service/control/move_orders.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;

PlacementMove Load(int host, int expert) {
  return {PlacementMove::Kind::kLoad, host, {0, expert}, 10};
}
PlacementMove Unload(int host, int expert) {
  return {PlacementMove::Kind::kUnload, host, {0, expert}, 10};
}

// "+1:2,3": host 1 loads experts 2 and 3.
std::vector<std::string> Orders(const std::vector<PlacementMove>& moves,
                                int64_t max_bytes = 1000) {
  std::vector<std::string> texts;
  for (const MoveOrder& order : GroupMoves(moves, max_bytes)) {
    std::string text = absl::StrCat(
        order.kind == PlacementMove::Kind::kLoad ? "+" : "-", order.host, ":");
    for (const SlotId slot : order.slots) {
      absl::StrAppend(&text, slot == order.slots.front() ? "" : ",",
                      slot.expert);
    }
    texts.push_back(std::move(text));
    EXPECT_EQ(order.bytes, static_cast<int64_t>(10 * order.slots.size()));
  }
  return texts;
}

TEST(MoveOrdersTest, GatherLoadsOfAHostPastThoseOfOthers) {
  EXPECT_THAT(Orders({}), ElementsAre());
  EXPECT_THAT(Orders({Load(0, 5), Load(1, 1), Load(0, 2), Load(1, 7)}),
              ElementsAre("+0:2,5", "+1:1,7"));
  // The unload elsewhere waits for what comes before it.
  EXPECT_THAT(Orders({Load(0, 5), Unload(1, 5), Load(0, 2), Load(1, 7)}),
              ElementsAre("+0:2,5", "-1:5", "+1:7"));
}

TEST(MoveOrdersTest, LoadsDoNotPassUnloadsOfTheirHost) {
  EXPECT_THAT(Orders({Load(0, 1), Unload(0, 3), Load(0, 2), Load(0, 4)}),
              ElementsAre("+0:1", "-0:3", "+0:2,4"));
}

TEST(MoveOrdersTest, UnloadsJoinTheirNeighboursOnly) {
  EXPECT_THAT(Orders({Unload(0, 1), Unload(0, 2), Unload(1, 1), Unload(0, 3)}),
              ElementsAre("-0:1,2", "-1:1", "-0:3"));
  EXPECT_THAT(Orders({Unload(0, 1), Load(1, 1), Unload(0, 2)}),
              ElementsAre("-0:1", "+1:1", "-0:2"));
}

TEST(MoveOrdersTest, KeepToTheirSize) {
  const std::vector<PlacementMove> moves = {Load(0, 1), Load(0, 2), Load(1, 3),
                                            Load(0, 4)};
  EXPECT_THAT(Orders(moves, 20), ElementsAre("+0:1,2", "+1:3", "+0:4"));
  EXPECT_THAT(Orders(moves, 1), ElementsAre("+0:1", "+0:2", "+1:3", "+0:4"));
}

}  // namespace
}  // namespace expertmesh::router
