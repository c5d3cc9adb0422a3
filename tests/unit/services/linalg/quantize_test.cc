// Codes, steps and scales of quantized weights against plain loops that know
// nothing of lanes, on every instruction set: which of two candidates wins is
// decided by sums of squares, so these are compared to the bit.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "services/linalg/packed_matrix.h"
#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kInt8, WeightFormat::kInt4};

// One output as it should be.
struct Expected {
  float scale = 0;
  int32_t offset = 0;
  std::vector<int> codes;        // int8: [k]; int4: [k padded], 0 to 15
  std::vector<int> multipliers;  // int4: one for each 32 of k
  std::vector<int> zeros;        // int4: 7 or 8
};

float Largest(const std::vector<float>& row) {
  float largest = 0;
  for (const float v : row) largest = std::max(largest, std::fabs(v));
  return largest;
}

Expected ExpectedInt8(const std::vector<float>& row) {
  Expected out;
  out.codes.assign(row.size(), 0);
  const float largest = Largest(row);
  if (largest < 1e-30f) return out;
  out.scale = largest / 127.0f;
  const float factor = 127.0f / largest;
  for (size_t i = 0; i < row.size(); ++i) {
    out.codes[i] = static_cast<int>(std::nearbyintf(row[i] * factor));
    out.offset += 128 * out.codes[i];
  }
  return out;
}

using GroupValues = std::array<float, 32>;

int CodeOf(float value, float step, int zero) {
  const float nearest = std::nearbyintf(value * (1.0f / step));
  return static_cast<int>(std::min(std::max(nearest, static_cast<float>(-zero)),
                                   static_cast<float>(15 - zero)));
}

// Elements i and i + 16 together, then halves onto halves.
float ErrorOf(const GroupValues& values, float step, int zero) {
  float sums[16];
  for (int i = 0; i < 16; ++i) {
    float squares[2];
    for (int half = 0; half < 2; ++half) {
      const float value = values[i + 16 * half];
      const float product =
          static_cast<float>(CodeOf(value, step, zero)) * step;
      const float off = value - product;
      squares[half] = off * off;
    }
    sums[i] = squares[0] + squares[1];
  }
  for (int width = 8; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] = sums[i] + sums[i + width];
  }
  return sums[0];
}

struct Steps {
  float error = 0;
  std::vector<int> multipliers;
};

Steps StepsFor(const std::vector<GroupValues>& groups,
               const std::vector<int>& zeros, float scale) {
  Steps steps;
  for (size_t g = 0; g < groups.size(); ++g) {
    float largest = 0;
    for (const float v : groups[g]) largest = std::max(largest, std::fabs(v));
    const int reach =
        static_cast<int>(std::nearbyintf(largest / (8.0f * scale)));
    float best_error = std::numeric_limits<float>::infinity();
    int best = 0;
    for (const int wanted : {reach - 1, reach}) {
      const int multiplier = std::min(std::max(wanted, 1), 15);
      const float error =
          ErrorOf(groups[g], static_cast<float>(multiplier) * scale, zeros[g]);
      if (error < best_error) {
        best_error = error;
        best = multiplier;
      }
    }
    steps.error = steps.error + best_error;
    steps.multipliers.push_back(best);
  }
  return steps;
}

Expected ExpectedInt4(const std::vector<float>& row) {
  Expected out;
  const size_t num_groups = (row.size() + 31) / 32;
  out.codes.assign(num_groups * 32, 0);
  out.multipliers.assign(num_groups, 0);
  out.zeros.assign(num_groups, 8);
  const float largest = Largest(row);
  if (largest < 1e-30f) return out;
  std::vector<GroupValues> groups(num_groups, GroupValues{});
  for (size_t i = 0; i < row.size(); ++i) {
    groups[i / 32][i % 32] = row[i] / largest;
  }
  // The side of the first of the largest weights has one code more.
  for (size_t g = 0; g < num_groups; ++g) {
    const auto first = std::max_element(
        groups[g].begin(), groups[g].end(),
        [](float a, float b) { return std::fabs(a) < std::fabs(b); });
    if (*first > 0) out.zeros[g] = 7;
  }
  float best_error = std::numeric_limits<float>::infinity();
  float best_scale = 0;
  for (const float factor : {1.0f, 0.94f, 0.88f}) {
    const float scale = factor / 120.0f;
    const Steps steps = StepsFor(groups, out.zeros, scale);
    if (steps.error < best_error) {
      best_error = steps.error;
      best_scale = scale;
      out.multipliers = steps.multipliers;
    }
  }
  for (size_t i = 0; i < out.codes.size(); ++i) {
    const int multiplier = out.multipliers[i / 32];
    const int zero = out.zeros[i / 32];
    const int code = CodeOf(groups[i / 32][i % 32],
                            static_cast<float>(multiplier) * best_scale, zero);
    out.codes[i] = code + zero;
    out.offset += 128 * code * multiplier;
  }
  out.scale = best_scale * largest;
  return out;
}

// The panel byte by byte, as panel_layout.h describes it.
std::vector<uint8_t> ExpectedPanels(const std::vector<float>& weights,
                                    int64_t n, int64_t k, WeightFormat format) {
  std::vector<uint8_t> bytes(PackedBytes(n, k, format), 0);
  const int64_t panel_bytes = PackedBytes(1, k, format);
  for (int64_t output = 0; output < n; ++output) {
    uint8_t* panel = &bytes[output / 64 * panel_bytes];
    const int64_t column = output % 64;
    const std::vector<float> row(weights.begin() + output * k,
                                 weights.begin() + (output + 1) * k);
    const bool is_int8 = format == WeightFormat::kInt8;
    const Expected expected = is_int8 ? ExpectedInt8(row) : ExpectedInt4(row);
    std::memcpy(panel + column * 4, &expected.scale, 4);
    std::memcpy(panel + 256 + column * 4, &expected.offset, 4);
    if (expected.scale == 0) continue;  // all of it is zeros
    for (size_t i = 0; is_int8 && i < expected.codes.size(); ++i) {
      panel[512 + i / 4 * 256 + column * 4 + i % 4] =
          static_cast<uint8_t>(expected.codes[i]);
    }
    for (size_t g = 0; g < expected.multipliers.size(); ++g) {
      uint8_t* block = panel + 512 + g / 2 * 2176;
      block[g % 2 * 64 + column] = static_cast<uint8_t>(
          expected.multipliers[g] + (expected.zeros[g] == 7 ? 16 : 0));
      for (size_t i = 0; i < 32; ++i) {
        const size_t at = g % 2 * 32 + i;
        block[128 + at / 8 * 256 + column * 4 + at % 4] |= static_cast<uint8_t>(
            expected.codes[g * 32 + i] << (at % 8 < 4 ? 0 : 4));
      }
    }
  }
  return bytes;
}

struct Weights {
  std::string name;
  std::vector<float> values;  // [n, k]
};

std::vector<Weights> Cases(int64_t n, int64_t k) {
  const auto fill = [&](auto draw) {
    std::vector<float> values(n * k);
    for (float& value : values) value = draw();
    return values;
  };
  std::mt19937 random(static_cast<uint32_t>(n * 1000 + k));
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::uniform_int_distribution<int> small(-3, 3);
  std::student_t_distribution<float> heavy(2.0f);
  std::vector<Weights> cases = {
      {"normal", fill([&] { return normal(random); })},
      {"outliers", fill([&] { return heavy(random); })},
      // Ties of every kind: of largest weights, of codes, of errors.
      {"few values", fill([&] { return static_cast<float>(small(random)); })},
      {"constant", std::vector<float>(n * k, -0.75f)},
      {"zero", std::vector<float>(n * k, 0.0f)},
      {"below the least", std::vector<float>(n * k, 9e-31f)},
      {"tiny", fill([&] { return normal(random) * 1e-27f; })},
      {"huge", fill([&] { return normal(random) * 3e38f; })}};
  // Outputs unlike their neighbours: zeros, and groups of zeros.
  cases.push_back({"sparse", cases[0].values});
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = 0; i < k; ++i) {
      if (row % 3 == 1 || i / 32 % 2 == row % 2) {
        cases.back().values[row * k + i] = 0;
      }
    }
  }
  return cases;
}

std::vector<uint8_t> BytesOf(const PackedMatrix& packed) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(packed.panel(0));
  return std::vector<uint8_t>(bytes, bytes + packed.size_bytes());
}

class QuantizeTest : public ::testing::TestWithParam<Isa> {
 protected:
  const ScopedIsa isa_{GetParam()};
};

TEST_P(QuantizeTest, IsWhatPlainLoopsChooseToTheBit) {
  for (const auto& [n, k] : {std::pair{1, 1},
                             {3, 31},
                             {16, 32},
                             {17, 33},
                             {64, 64},
                             {70, 200},
                             {129, 96},
                             {5, 1000}}) {
    for (const Weights& weights : Cases(n, k)) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        const TypedValues typed(weights.values, dtype);
        for (const WeightFormat format : kFormats) {
          const auto packed = PackedMatrix::Pack(typed.View(n, k), format);
          ASSERT_TRUE(packed.ok()) << packed.status();
          const std::vector<uint8_t> expected =
              ExpectedPanels(typed.f32, n, k, format);
          const std::vector<uint8_t> bytes = BytesOf(*packed);
          ASSERT_EQ(bytes.size(), expected.size());
          const auto [at, _] =
              std::mismatch(bytes.begin(), bytes.end(), expected.begin());
          ASSERT_EQ(at - bytes.begin(), static_cast<ptrdiff_t>(expected.size()))
              << WeightFormatName(format) << " from " << DTypeName(dtype)
              << ", " << weights.name << ", n " << n << " k " << k;
        }
      }
    }
  }
}

// Where parts meet inside a panel, each output is what it is alone.
TEST_P(QuantizeTest, PartsMeetAnywhere) {
  constexpr int64_t kK = 90;
  const std::vector<float> values = RandomFloats(100 * kK, 8, 0.1f);
  const TypedValues whole(values, DType::kBF16);
  for (const WeightFormat format : kFormats) {
    const auto packed = PackedMatrix::Pack(whole.View(100, kK), format);
    ASSERT_TRUE(packed.ok());
    for (const int64_t cut : {1, 15, 16, 37, 64, 99}) {
      const TensorView parts[] = {
          {whole.bytes.data(), DType::kBF16, {cut, kK}},
          {whole.bytes.data() + cut * kK * 2, DType::kBF16, {100 - cut, kK}}};
      const auto joined = PackedMatrix::Pack(parts, format);
      ASSERT_TRUE(joined.ok()) << joined.status();
      EXPECT_EQ(BytesOf(*joined), BytesOf(*packed)) << "cut at " << cut;
    }
  }
}

TEST_P(QuantizeTest, RefusesWhatIsNotFinite) {
  for (const WeightFormat format : kFormats) {
    for (const float bad : {std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
      for (const int64_t at : {0, 13, 19}) {
        std::vector<float> values(20, 1.0f);
        values[at] = bad;
        const TypedValues w(values, DType::kF32);
        EXPECT_EQ(PackedMatrix::Pack(w.View(4, 5), format).status().code(),
                  absl::StatusCode::kInvalidArgument);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EachIsa, QuantizeTest,
                         ::testing::ValuesIn(AvailableIsas()), IsaTestName);

}  // namespace
}  // namespace expertmesh
