#include "router_service/dispatch/endpoint_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

ModelConfig FourExperts() {
  ModelConfig config;
  config.num_layers = 1;
  config.num_experts = 4;
  config.layers.resize(1);
  return config;
}

EndpointInfo Endpoint(int index, const std::string& numerics_id,
                      const std::vector<uint32_t>& experts,
                      EndpointState state = EndpointState::kReady) {
  EndpointInfo info;
  info.index = index;
  info.state = state;
  info.numerics_id = numerics_id;
  for (const uint32_t expert : experts) info.hosted.push_back({0, expert});
  return info;
}

TEST(MeshNumericsIdTest, IsThatOfMostSlotsAtFirst) {
  EXPECT_EQ(MeshNumericsId({}), "");
  EXPECT_EQ(MeshNumericsId({Endpoint(0, "a", {0}), Endpoint(1, "b", {1, 2})}),
            "b");
}

TEST(MeshNumericsIdTest, StaysWhileAReadyEndpointHasIt) {
  const std::vector<EndpointInfo> endpoints = {
      Endpoint(0, "a", {0}), Endpoint(1, "b", {0, 1, 2, 3}),
      Endpoint(2, "c", {}, EndpointState::kDraining)};
  EXPECT_EQ(MeshNumericsId(endpoints, "a"), "a");
  EXPECT_EQ(MeshNumericsId(endpoints, "c"), "b");
}

TEST(MeshNumericsTest, AnyOtherIdEndsWhatWasComputedEvenUncovered) {
  const std::vector<EndpointInfo> a = {Endpoint(0, "a", {0, 1, 2, 3})};
  const std::vector<EndpointInfo> b = {Endpoint(1, "b", {0})};
  MeshNumerics numerics;
  EXPECT_FALSE(numerics.Choose(b));  // nothing was computed before
  EXPECT_TRUE(numerics.Choose(a));
  numerics.Keep();
  EXPECT_FALSE(numerics.Choose(a));
  EXPECT_TRUE(numerics.Choose(b));  // covers too little to be kept
  EXPECT_EQ(numerics.chosen(), "b");
  EXPECT_TRUE(numerics.Choose({a[0], b[0]}));
  EXPECT_EQ(numerics.chosen(), "a");
  EXPECT_EQ(numerics.kept(), "a");
}

TEST(MeshNumericsTest, NoEndpointsEndNothing) {
  const std::vector<EndpointInfo> a = {Endpoint(0, "a", {0, 1, 2, 3})};
  MeshNumerics numerics;
  EXPECT_FALSE(numerics.Choose({}));
  EXPECT_FALSE(numerics.Choose(a));
  EXPECT_FALSE(numerics.Choose({}));
  EXPECT_EQ(numerics.chosen(), "");
  EXPECT_FALSE(numerics.Choose(a));
  EXPECT_FALSE(numerics.Choose({}));
  EXPECT_TRUE(numerics.Choose({Endpoint(1, "b", {0, 1, 2, 3})}));
}

TEST(PlaceOnEndpointsTest, ThoseOfTheMeshsNumericsComeFirst) {
  const auto placed = PlaceOnEndpoints(
      FourExperts(), {Endpoint(0, "b", {0, 1, 2, 3}), Endpoint(1, "a", {0, 1})},
      "a");
  EXPECT_THAT(placed.placement->replicas(0, 0), ElementsAre(1, 0));
  EXPECT_THAT(placed.placement->preferred(0, 0), ElementsAre(1));
  EXPECT_THAT(placed.placement->replicas(0, 2), ElementsAre(0));
  EXPECT_THAT(placed.placement->preferred(0, 2), IsEmpty());
  EXPECT_EQ(placed.uncovered_slots, 0);
}

TEST(PlaceOnEndpointsTest, RoutersThatSeeTheSameAgreeOnTheChecksum) {
  EndpointInfo a = Endpoint(0, "x", {0, 1, 2, 3});
  EndpointInfo b = Endpoint(1, "x", {0});
  EndpointInfo c = Endpoint(2, "x", {0});
  a.instance_id = 11;
  b.instance_id = 12;
  c.address = "c:1";  // does not tell
  const auto place = [](const std::vector<EndpointInfo>& endpoints) {
    return PlaceOnEndpoints(FourExperts(), endpoints, "x");
  };
  const EndpointPlacement all = place({a, b, c});
  EXPECT_EQ(all.copies, 6);
  EndpointInfo of_another_router = a;
  of_another_router.index = 5;
  of_another_router.address = "elsewhere:1";
  EXPECT_EQ(place({c, b, of_another_router}).checksum, all.checksum);
  // As many copies, but on other services, or of other experts.
  EXPECT_NE(place({a, b}).checksum, place({a, c}).checksum);
  EXPECT_EQ(place({a, b}).copies, place({a, c}).copies);
  b.hosted = {{0, 1}};
  EXPECT_NE(place({a, b, c}).checksum, all.checksum);
  b.state = EndpointState::kDraining;
  EXPECT_EQ(place({a, b}).checksum, place({a}).checksum);
  EXPECT_EQ(place({}).checksum, 0u);
}

TEST(PlaceOnEndpointsTest, DrainingOnesServeWhatNobodyElseDoes) {
  const auto placed = PlaceOnEndpoints(
      FourExperts(),
      {Endpoint(0, "a", {0, 1}, EndpointState::kDraining),
       Endpoint(1, "a", {1, 2, 9}, EndpointState::kDraining),
       Endpoint(2, "a", {2}), Endpoint(3, "a", {3}, EndpointState::kLeaving)},
      "a");
  EXPECT_THAT(placed.placement->replicas(0, 0), ElementsAre(0));
  EXPECT_THAT(placed.placement->replicas(0, 1), ElementsAre(0, 1));
  EXPECT_THAT(placed.placement->replicas(0, 2), ElementsAre(2));
  EXPECT_EQ(placed.uncovered_slots, 1);
}

TEST(PlacementTest, RemovesAReplica) {
  Placement placement(1, 1);
  placement.Add(0, 0, 5, /*is_preferred=*/false);
  placement.Add(0, 0, 6);
  placement.Add(0, 0, 7);
  placement.Remove(0, 0, 6);
  placement.Remove(0, 0, 6);
  EXPECT_THAT(placement.preferred(0, 0), ElementsAre(7));
  placement.Remove(0, 0, 5);
  EXPECT_THAT(placement.replicas(0, 0), ElementsAre(7));
  EXPECT_THAT(placement.preferred(0, 0), ElementsAre(7));
}

TEST(PlaceOnEndpointsTest, KnowsWhoCanAddRows) {
  std::vector<EndpointInfo> endpoints = {
      Endpoint(3, "a", {0}), Endpoint(5, "a", {1}),
      Endpoint(7, "a", {2}, EndpointState::kDraining)};
  endpoints[1].adds_rows = endpoints[2].adds_rows = true;
  const auto placement =
      PlaceOnEndpoints(FourExperts(), endpoints, "a").placement;
  EXPECT_FALSE(placement->adds_rows(3));
  EXPECT_TRUE(placement->adds_rows(5));
  EXPECT_TRUE(placement->adds_rows(7));  // serves what nobody else holds
}

}  // namespace
}  // namespace expertmesh::router
