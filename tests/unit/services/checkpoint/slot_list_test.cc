#include "services/checkpoint/slot_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace expertmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::StartsWith;

// Layers 0 and 2 have four experts each; layer 1 is dense.
ModelConfig Model() {
  ModelConfig model;
  model.num_layers = 3;
  model.num_experts = 4;
  model.layers.resize(3);
  model.layers[1].is_moe = false;
  return model;
}

TEST(SlotListTest, IdsAndRangesStandForEveryMoeLayer) {
  EXPECT_THAT(
      *ParseSlotList("3,0-1", Model()),
      ElementsAre(ExpertSlot{0, 0}, ExpertSlot{0, 1}, ExpertSlot{0, 3},
                  ExpertSlot{2, 0}, ExpertSlot{2, 1}, ExpertSlot{2, 3}));
  EXPECT_EQ(ParseSlotList("", Model())->size(), 8u);
  EXPECT_THAT(*ParseSlotList("none", Model()), IsEmpty());
}

TEST(SlotListTest, WithALayerTheyStandForIt) {
  EXPECT_THAT(*ParseSlotList("3@2,1@0", Model()),
              ElementsAre(ExpertSlot{0, 1}, ExpertSlot{2, 3}));
  EXPECT_THAT(*ParseSlotList("0,2-3@2", Model()),
              ElementsAre(ExpertSlot{0, 0}, ExpertSlot{2, 0}, ExpertSlot{2, 2},
                          ExpertSlot{2, 3}));
}

TEST(SlotListTest, SpacesMayStandAroundNumbers) {
  EXPECT_EQ(*ParseSlots(" 3@2 , 0 - 1@ 0", Model()),
            *ParseSlots("3@2,0-1@0", Model()));
}

TEST(SlotListTest, RefusalsSayWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"4", "there is no expert 4 (the model has 4)"},
      {"2-4", "there is no expert 4"},
      {"99999999999999999999", "there is no expert 99999999999999999999"},
      {"1@3", "there is no layer 3 (the model has 3)"},
      {"1@1", "layer 1 of the model has no experts"},
      {"1@", "'' is not a layer id"},
      {"1@x", "'x' is not a layer id"},
      {"1@-1", "'-1' is not a layer id"},
      {"1@0-2", "'0-2' is not a layer id"},
      {"1@2@2", "'2@2' is not a layer id"},
      {"@2", "'' is not an expert id"},
      {",", "'' is not an expert id"},
      {"1,", "'' is not an expert id"},
      {"-1", "'' is not an expert id"},
      {"1-", "'' is not an expert id"},
      {"1-2-3", "'2-3' is not an expert id"},
      {"+1", "'+1' is not an expert id"},
      {"0x1", "'0x1' is not an expert id"},
      {"1.0", "'1.0' is not an expert id"},
      {"none,1", "'none' is not an expert id"},
      {"2-1", "the range 2-1 is reversed"},
      {"1,1", "expert 1 of layer 0 is named twice"},
      {"0-2,1@2", "expert 1 of layer 2 is named twice"},
  };
  for (const auto& [text, message] : cases) {
    for (const auto& slots :
         {ParseSlotList(text, Model()), ParseSlots(text, Model())}) {
      EXPECT_EQ(slots.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(slots.status().message()),
                  StartsWith("'" + text + "': " + message));
    }
  }
}

TEST(SlotListTest, WordsAreOfTheFlagAlone) {
  for (const char* text : {"", "none"}) {
    EXPECT_EQ(ParseSlots(text, Model()).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(SlotListTest, FormatsWhatItParses) {
  for (const char* text : {"none", "0-3", "1,3", "0-1,3@0", "2@0,3@2"}) {
    EXPECT_EQ(FormatSlotList(*ParseSlotList(text, Model()), Model()), text);
  }
  EXPECT_EQ(FormatSlotList(*ParseSlotList("1@2,1@0", Model()), Model()), "1");
}

TEST(SlotListTest, ChecksSlotsOfOrders) {
  EXPECT_TRUE(CheckSlots({ExpertSlot{2, 3}}, Model()).ok());
  for (const ExpertSlot& slot :
       {ExpertSlot{1, 0}, {3, 0}, {-1, 0}, {0, 4}, {0, -1}}) {
    EXPECT_EQ(CheckSlots({slot}, Model()).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace expertmesh
