#include "services/checkpoint/families/rope_fields.h"

#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "services/checkpoint/json_reader.h"

namespace expertmesh {
namespace {

constexpr double kMaxNumber = std::numeric_limits<double>::max();
constexpr int64_t kMaxPositions = int64_t{1} << 31;

RopeType ParseRopeType(ConfigReader& fields) {
  constexpr std::array<std::pair<absl::string_view, RopeType>, 5> kTypes = {{
      {"default", RopeType::kDefault},
      {"linear", RopeType::kLinear},
      {"dynamic", RopeType::kDynamic},
      {"yarn", RopeType::kYarn},
      {"llama3", RopeType::kLlama3},
  }};
  const absl::string_view field =
      fields.Has("rope_type") ? "rope_type" : "type";
  const std::string name = fields.StringOr(field, "default");
  for (const auto& [known, type] : kTypes) {
    if (name == known) return type;
  }
  fields.Fail(field, Quoted(name),
              " is not supported (known: default, linear, dynamic, yarn, "
              "llama3)");
  return RopeType::kDefault;
}

void ParseYarn(ConfigReader& fields, int64_t max_positions, RopeConfig& rope) {
  // Without a factor the context was stretched to max_position_embeddings.
  rope.factor = fields.PositiveOr(
      "factor", static_cast<double>(max_positions) /
                    static_cast<double>(rope.original_max_position));
  rope.beta_fast = fields.PositiveOr("beta_fast", 32.0);
  rope.beta_slow = fields.PositiveOr("beta_slow", 1.0);
  rope.attention_factor =
      fields.OptionalNumber("attention_factor", 0.0, kMaxNumber);
  rope.mscale = fields.OptionalNumber("mscale", 0.0, kMaxNumber);
  rope.mscale_all_dim =
      fields.OptionalNumber("mscale_all_dim", 0.0, kMaxNumber);
  rope.truncate = fields.BoolOr("truncate", true);
}

void ParseLlama3(ConfigReader& fields, RopeConfig& rope) {
  rope.factor = fields.Positive("factor");
  rope.low_freq_factor = fields.Positive("low_freq_factor");
  rope.high_freq_factor = fields.Positive("high_freq_factor");
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    fields.Fail("high_freq_factor", "(", rope.high_freq_factor,
                ") must exceed low_freq_factor (", rope.low_freq_factor, ")");
  }
  if (!fields.Has("original_max_position_embeddings")) {
    fields.Fail("original_max_position_embeddings", "is missing");
  }
}

}  // namespace

RopeConfig ParseRope(ConfigReader& reader, int64_t head_dim,
                     int64_t max_positions, double default_theta) {
  const bool new_spelling = reader.Has("rope_parameters");
  ConfigReader fields =
      reader.Object(new_spelling ? "rope_parameters" : "rope_scaling");
  for (const absl::string_view layers :
       {"full_attention", "sliding_attention"}) {
    if (fields.Has(layers)) {
      fields.Fail(layers, "(parameters by kind of layer) is not supported");
    }
  }
  RopeConfig rope;
  rope.type = ParseRopeType(fields);
  rope.theta = reader.PositiveOr("rope_theta", default_theta);
  if (new_spelling) rope.theta = fields.PositiveOr("rope_theta", rope.theta);
  const double partial = (fields.Has("partial_rotary_factor") ? fields : reader)
                             .PositiveOr("partial_rotary_factor", 1.0);
  if (partial > 1.0) {
    reader.Fail("partial_rotary_factor", "(", partial, ") exceeds 1");
  } else {
    rope.rotary_dim =
        static_cast<int64_t>(static_cast<double>(head_dim) * partial);
  }
  rope.original_max_position = fields.SizeOr("original_max_position_embeddings",
                                             max_positions, kMaxPositions);
  switch (rope.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLinear:
    case RopeType::kDynamic:
      rope.factor = fields.Positive("factor");
      break;
    case RopeType::kYarn:
      ParseYarn(fields, max_positions, rope);
      break;
    case RopeType::kLlama3:
      ParseLlama3(fields, rope);
      break;
  }
  return rope;
}

}  // namespace expertmesh
