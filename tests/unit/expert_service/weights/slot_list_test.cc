#include "expert_service/weights/slot_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace expertmesh::expert {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

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

TEST(SlotListTest, RefusalsSayWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"4", "no expert 4"},
      {"1@3", "no layer 3"},
      {"1@-1", "no layer -1"},
      {"1@1", "layer 1 of the model has no"},
      {"1@x", "'x' is not a layer"},
      {"@2", "not an expert id"},
      {"none,1", "not an expert id"},
      {"1,", "not an expert id"},
      {"0-2,1@2", "expert 1 of layer 2 is named twice"},
  };
  for (const auto& [text, message] : cases) {
    const auto slots = ParseSlotList(text, Model());
    EXPECT_EQ(slots.status().code(), absl::StatusCode::kInvalidArgument)
        << text;
    EXPECT_THAT(std::string(slots.status().message()), HasSubstr(message));
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
}  // namespace expertmesh::expert
