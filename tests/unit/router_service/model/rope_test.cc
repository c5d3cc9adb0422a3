#include "router_service/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace expertmesh::router {
namespace {

RopeConfig Config(RopeType type, int64_t dim = 8) {
  RopeConfig config;
  config.type = type;
  config.theta = 10000.0;
  config.rotary_dim = dim;
  return config;
}

TEST(RopeTest, RotatesFirstHalfAgainstSecondHalf) {
  const RopeTable table(Config(RopeType::kDefault, 4), 16);
  float head[] = {1, 2, 3, 4, 9};
  table.Rotate(3, head);
  // Frequencies 1 and 10000^(-1/2) = 0.01; angles 3 and 0.03.
  EXPECT_NEAR(head[0], 1 * std::cos(3.0) - 3 * std::sin(3.0), 1e-5);
  EXPECT_NEAR(head[2], 3 * std::cos(3.0) + 1 * std::sin(3.0), 1e-5);
  EXPECT_NEAR(head[1], 2 * std::cos(0.03) - 4 * std::sin(0.03), 1e-5);
  EXPECT_NEAR(head[3], 4 * std::cos(0.03) + 2 * std::sin(0.03), 1e-5);
  EXPECT_EQ(head[4], 9);  // beyond rotary_dim
}

TEST(RopeTest, PositionZeroChangesNothing) {
  const RopeTable table(Config(RopeType::kDefault), 4);
  float head[] = {1, 2, 3, 4, 5, 6, 7, 8};
  table.Rotate(0, head);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(head[i], i + 1);
}

TEST(RopeTest, LinearDividesFrequencies) {
  RopeConfig config = Config(RopeType::kLinear);
  config.factor = 4;
  const auto plain = RopeInverseFrequencies(Config(RopeType::kDefault));
  const auto scaled = RopeInverseFrequencies(config);
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_FLOAT_EQ(scaled[i], plain[i] / 4);
  }
}

TEST(RopeTest, YarnKeepsHighAndScalesLowFrequencies) {
  RopeConfig config = Config(RopeType::kYarn, 64);
  config.factor = 4;
  config.original_max_position = 4096;
  const auto plain = RopeInverseFrequencies(Config(RopeType::kDefault, 64));
  const auto scaled = RopeInverseFrequencies(config);
  EXPECT_FLOAT_EQ(scaled.front(), plain.front());
  EXPECT_FLOAT_EQ(scaled.back(), plain.back() / 4);
  // Dimensions between turn at beta_fast and at beta_slow: 10.02 and 22.5,
  // rounded out to 10 and 23.
  EXPECT_FLOAT_EQ(scaled[10], plain[10]);
  EXPECT_LT(scaled[11], plain[11]);
  EXPECT_GT(scaled[22], plain[22] / 4);
  EXPECT_FLOAT_EQ(scaled[23], plain[23] / 4);
  EXPECT_NEAR(RopeAttentionFactor(config), 0.1 * std::log(4.0) + 1, 1e-6);
  config.attention_factor = 1.5;
  EXPECT_FLOAT_EQ(RopeAttentionFactor(config), 1.5f);
}

TEST(RopeTest, Llama3ScalesByWavelength) {
  RopeConfig config = Config(RopeType::kLlama3, 128);
  config.theta = 500000.0;
  config.factor = 8;
  config.original_max_position = 8192;
  RopeConfig plain_config = Config(RopeType::kDefault, 128);
  plain_config.theta = 500000.0;
  const auto plain = RopeInverseFrequencies(plain_config);
  const auto scaled = RopeInverseFrequencies(config);
  for (size_t i = 0; i < plain.size(); ++i) {
    const double wavelength = 2 * M_PI / plain[i];
    if (wavelength < 8192 / 4.0) {
      EXPECT_EQ(scaled[i], plain[i]) << i;
    } else if (wavelength > 8192 / 1.0) {
      EXPECT_FLOAT_EQ(scaled[i], plain[i] / 8) << i;
    } else {
      EXPECT_LT(scaled[i], plain[i]) << i;
      EXPECT_GT(scaled[i], plain[i] / 8) << i;
    }
  }
}

}  // namespace
}  // namespace expertmesh::router
