// Hostile bytes: our reader agrees with Protobuf's about what is a message and
// what it says, and a batch that Validate lets through is safe to use.

#include <gtest/gtest.h>

#include <google/protobuf/stubs/logging.h>

#include "services/wire/batch_codec.h"
#include "services/wire/row_sum.h"
#include "tests/unit/services/wire/wire_test_util.h"

namespace expertmesh {
namespace {

std::string SomeBatch(std::mt19937& random) {
  expert::v1::ExpertBatch m;
  m.set_sequence_number(random());
  m.set_layer(random() % 100);
  m.set_data_type(static_cast<expert::v1::DataType>(1 + random() % 3));
  m.set_hidden_size(1 + random() % 5);
  m.set_num_tokens(1 + random() % 6);
  m.add_group_offsets(0);
  for (uint32_t e = 0; e < random() % 5; ++e) {
    m.add_expert_ids(e * 2);
    for (uint32_t t = 0; t < m.num_tokens(); ++t) {
      if (random() % 2) m.add_row_token(t);
    }
    m.add_group_offsets(m.row_token_size());
  }
  if (random() % 2 && m.row_token_size() > 0) {
    m.set_num_sums(1);
    for (int r = 0; r < m.row_token_size(); ++r) {
      m.add_row_weight(0.5f);
      m.add_row_sum(r % 3 == 0 ? 0 : kNoSum);
    }
  }
  if (random() % 2) m.set_traceparent("00-ab-cd-01");
  for (auto i = random() % 6; i > 0; --i) m.add_further_traceparents("00-ef");
  constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kInt8};
  const DType dtype = kTypes[m.data_type() - 1];
  m.set_hidden_states(
      std::string(m.num_tokens() * RowBytes(dtype, m.hidden_size()), 'h'));
  return m.SerializeAsString();
}

std::string Mutate(std::string bytes, std::mt19937& random) {
  for (uint32_t i = 0; i < 1 + random() % 4 && !bytes.empty(); ++i) {
    const size_t at = random() % bytes.size();
    switch (random() % 6) {
      case 0:
        bytes[at] = static_cast<char>(random());
        break;
      case 1:
        bytes[at] ^= static_cast<char>(1 << random() % 8);
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.erase(at, 1 + random() % 8);
        break;
      case 4:
        bytes.insert(at, std::string(1 + random() % 8, '\xff'));
        break;
      case 5:
        bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 20));
        break;
    }
  }
  return bytes;
}

// Protobuf refuses strings that are no UTF-8 while parsing; for us that is
// Validate's business. It tells the reason only to its log.
bool refused_utf8 = false;

template <typename Message>
bool Parse(const std::string& bytes, Message* message) {
  refused_utf8 = false;
  auto* before = google::protobuf::SetLogHandler([](google::protobuf::LogLevel,
                                                    const char*, int,
                                                    const std::string& text) {
    refused_utf8 = text.find("UTF-8") != std::string::npos;
  });
  const bool parsed = message->ParseFromString(bytes);
  google::protobuf::SetLogHandler(before);
  return parsed;
}

void Check(const std::string& bytes, std::mt19937& random, int* valid) {
  const grpc::ByteBuffer buffer = Shatter(bytes, random, 1 + random() % 40);
  expert::v1::ExpertBatch theirs;
  const bool parsed = Parse(bytes, &theirs);
  DecodedBatch ours;
  const absl::Status status = ours.Decode(buffer);
  if (!status.ok()) {
    ASSERT_FALSE(parsed) << status;
    return;
  }
  ASSERT_TRUE(parsed || refused_utf8);
  if (parsed) {
    ASSERT_EQ(ours.sequence_number(), theirs.sequence_number());
    ASSERT_EQ(ours.layer(), theirs.layer());
    ASSERT_EQ(ours.hidden_size(), theirs.hidden_size());
    ASSERT_EQ(ours.traceparent(), theirs.traceparent());
    const auto further = ours.further_traceparents();
    ASSERT_LE(further.size(), kMaxBatchTraces - 1);
    ASSERT_LE(static_cast<int>(further.size()),
              theirs.further_traceparents_size());
    ASSERT_TRUE(std::equal(ours.row_token().begin(), ours.row_token().end(),
                           theirs.row_token().begin(),
                           theirs.row_token().end()));
    ASSERT_EQ(ours.num_sums(), theirs.num_sums());
    ASSERT_TRUE(std::equal(ours.row_sum().begin(), ours.row_sum().end(),
                           theirs.row_sum().begin(), theirs.row_sum().end()));
    // By their bits, for some of them are NaN.
    const auto same_bits = [](float a, float b) {
      return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
    };
    ASSERT_TRUE(std::equal(ours.row_weight().begin(), ours.row_weight().end(),
                           theirs.row_weight().begin(),
                           theirs.row_weight().end(), same_bits));
  }
  if (!ours.Validate().ok()) return;
  ++*valid;
  if (!parsed) return;
  std::string rows(ours.num_rows() * ours.row_bytes(), '\0');
  ours.CopyRows(0, ours.num_rows(), reinterpret_cast<std::byte*>(rows.data()));
  for (size_t r = 0; r < ours.num_rows(); ++r) {
    ASSERT_EQ(rows.substr(r * ours.row_bytes(), ours.row_bytes()),
              theirs.hidden_states().substr(
                  ours.row_token()[r] * ours.row_bytes(), ours.row_bytes()));
  }
}

TEST(BatchCodecFuzz, MutatedBatches) {
  std::mt19937 random(20);
  int valid = 0;
  for (int round = 0; round < 20'000 && !HasFatalFailure(); ++round) {
    Check(Mutate(SomeBatch(random), random), random, &valid);
  }
  EXPECT_GT(valid, 100);  // the mutations leave something to look at
}

TEST(BatchCodecFuzz, RandomBytes) {
  std::mt19937 random(21);
  int valid = 0;
  for (int round = 0; round < 20'000 && !HasFatalFailure(); ++round) {
    std::string bytes(random() % 60, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    Check(bytes, random, &valid);
  }
}

TEST(BatchCodecFuzz, MutatedResults) {
  std::mt19937 random(22);
  DecodedResult ours;
  int well_shaped = 0;
  for (int round = 0; round < 20'000 && !HasFatalFailure(); ++round) {
    expert::v1::ExpertResult m;
    m.set_sequence_number(random());
    m.set_code(expert::v1::CODE_OK);
    const bool in_codes = random() % 2;
    const DType dtype = in_codes ? DType::kInt8 : DType::kBF16;
    const size_t rows_bytes = 4 * RowBytes(dtype, 3);
    m.set_data_type(in_codes ? expert::v1::DATA_TYPE_INT8
                             : expert::v1::DATA_TYPE_BF16);
    m.set_hidden_size(3);
    m.set_num_rows(4);
    m.set_hidden_states(std::string(rows_bytes, 'r'));
    m.set_num_sums(2);
    m.set_partial_sums(std::string(24, 's'));
    const std::string bytes = Mutate(m.SerializeAsString(), random);
    expert::v1::ExpertResult theirs;
    const bool parsed = Parse(bytes, &theirs);
    if (!ours.Decode(Shatter(bytes, random, 9)).ok()) {
      ASSERT_FALSE(parsed);
      continue;
    }
    ASSERT_TRUE(parsed || refused_utf8);
    if (!ours.CheckShape({.num_rows = 4,
                          .num_sums = 2,
                          .hidden_size = 3,
                          .dtype = dtype})
             .ok()) {
      continue;
    }
    ++well_shaped;
    std::string rows(rows_bytes, '\0');
    ours.CopyRows(reinterpret_cast<std::byte*>(rows.data()));
    if (parsed) {
      ASSERT_EQ(rows, theirs.hidden_states());
      std::string sum(12, '\0');
      ours.CopySum(1, reinterpret_cast<std::byte*>(sum.data()));
      ASSERT_EQ(sum, theirs.partial_sums().substr(12));
    }
  }
  EXPECT_GT(well_shaped, 100);
}

TEST(BatchCodecFuzz, DeepGroupsAreRefused) {
  std::mt19937 random(23);
  DecodedBatch batch;
  const std::string deep(1'000'000, '\x0b');  // field 1, start group
  EXPECT_FALSE(batch.Decode(Shatter(deep, random, 5000)).ok());
}

}  // namespace
}  // namespace expertmesh
