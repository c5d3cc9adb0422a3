#include "services/wire/batch_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "services/wire/row_sum.h"
#include "tests/unit/services/wire/wire_test_util.h"

namespace expertmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kHidden = 5;

// Three tokens, experts 1 and 7, four rows, of which two come back as one.
struct Example {
  PayloadPool pool;
  std::vector<uint32_t> expert_ids = {1, 7};
  std::vector<uint32_t> group_offsets = {0, 3, 4};
  std::vector<uint32_t> row_token = {2, 0, 1, 2};
  std::vector<float> row_weight = {0.25f, 0.0f, 0.0f, -3.5f};
  std::vector<uint32_t> row_sum = {0, kNoSum, kNoSum, 0};
  std::vector<std::string> traceparents = {
      "00-0af7651916cd43dd8448eb211c80319c-b7-01", "00-1-2-01"};
  PayloadRef payload = FilledPayload(pool, 3 * kHidden * 4, 1);

  BatchFields Fields() const {
    return {.sequence_number = 1'000'000'000'007,
            .layer = 300,
            .timeout_ms = 250,
            .dtype = DType::kF32,
            .hidden_size = kHidden,
            .num_tokens = 3,
            .expert_ids = expert_ids,
            .group_offsets = group_offsets,
            .row_token = row_token,
            .row_weight = row_weight,
            .row_sum = row_sum,
            .num_sums = 1,
            .traceparents = traceparents};
  }

  expert::v1::ExpertBatch Message() const {
    const BatchFields f = Fields();
    expert::v1::ExpertBatch m;
    m.set_sequence_number(f.sequence_number);
    m.set_layer(f.layer);
    m.set_timeout_ms(f.timeout_ms);
    m.set_data_type(expert::v1::DATA_TYPE_F32);
    m.set_hidden_size(kHidden);
    m.set_num_tokens(3);
    m.mutable_expert_ids()->Add(expert_ids.begin(), expert_ids.end());
    m.mutable_group_offsets()->Add(group_offsets.begin(), group_offsets.end());
    m.mutable_row_token()->Add(row_token.begin(), row_token.end());
    m.mutable_row_weight()->Add(row_weight.begin(), row_weight.end());
    m.mutable_row_sum()->Add(row_sum.begin(), row_sum.end());
    m.set_num_sums(1);
    m.set_traceparent(traceparents[0]);
    m.add_further_traceparents(traceparents[1]);
    m.set_hidden_states(AsString(payload));
    return m;
  }
};

void ExpectIsExample(const Example& example, const grpc::ByteBuffer& bytes) {
  DecodedBatch batch;
  ASSERT_EQ(batch.Decode(bytes), absl::OkStatus());
  ASSERT_EQ(batch.Validate(), absl::OkStatus());
  const BatchFields f = example.Fields();
  EXPECT_EQ(batch.sequence_number(), f.sequence_number);
  EXPECT_EQ(batch.layer(), f.layer);
  EXPECT_EQ(batch.timeout_ms(), f.timeout_ms);
  EXPECT_EQ(batch.dtype(), f.dtype);
  EXPECT_EQ(batch.hidden_size(), f.hidden_size);
  EXPECT_EQ(batch.num_tokens(), f.num_tokens);
  EXPECT_EQ(batch.expert_ids(), example.expert_ids);
  EXPECT_EQ(batch.group_offsets(), example.group_offsets);
  EXPECT_EQ(batch.row_token(), example.row_token);
  EXPECT_EQ(batch.row_weight(), example.row_weight);
  EXPECT_EQ(batch.row_sum(), example.row_sum);
  EXPECT_EQ(batch.num_sums(), 1u);
  EXPECT_EQ(batch.num_lone_rows(), 2u);
  EXPECT_EQ(batch.result_bytes(), 3u * kHidden * 4);
  EXPECT_EQ(batch.traceparent(), f.traceparents[0]);
  EXPECT_THAT(batch.further_traceparents(), ElementsAre(f.traceparents[1]));

  const size_t stride = batch.row_bytes();
  ASSERT_EQ(stride, kHidden * 4);
  std::vector<std::byte> rows(3 * stride);
  batch.CopyRows(1, 4, rows.data());
  for (size_t r = 0; r < 3; ++r) {
    EXPECT_EQ(
        std::memcmp(rows.data() + r * stride,
                    example.payload.data() + example.row_token[r + 1] * stride,
                    stride),
        0)
        << r;
  }
}

TEST(BatchCodec, RoundTrip) {
  const Example example;
  grpc::ByteBuffer bytes;
  ASSERT_EQ(EncodeBatch(example.Fields(), example.payload, &bytes),
            absl::OkStatus());
  ExpectIsExample(example, bytes);
}

TEST(BatchCodec, TheGeneratedClassReadsOurBytes) {
  const Example example;
  grpc::ByteBuffer bytes;
  ASSERT_EQ(EncodeBatch(example.Fields(), example.payload, &bytes),
            absl::OkStatus());
  expert::v1::ExpertBatch message;
  ASSERT_TRUE(message.ParseFromString(Flatten(bytes)));
  EXPECT_EQ(message.SerializeAsString(), example.Message().SerializeAsString());
}

// A scale in front of each row's codes, whatever their number.
TEST(BatchCodec, RowsInCodes) {
  Example example;
  BatchFields fields = example.Fields();
  fields.dtype = DType::kInt8;
  constexpr size_t kRowBytes = 4 + kHidden;
  grpc::ByteBuffer bytes;
  ASSERT_EQ(EncodeBatch(fields, example.payload, &bytes), absl::OkStatus());
  expert::v1::ExpertBatch message;
  ASSERT_TRUE(message.ParseFromString(Flatten(bytes)));
  EXPECT_EQ(message.data_type(), expert::v1::DATA_TYPE_INT8);
  EXPECT_EQ(message.hidden_states(),
            AsString(example.payload).substr(0, 3 * kRowBytes));
  DecodedBatch batch;
  ASSERT_EQ(batch.Decode(bytes), absl::OkStatus());
  ASSERT_EQ(batch.Validate(), absl::OkStatus());
  EXPECT_EQ(batch.dtype(), DType::kInt8);
  EXPECT_EQ(batch.row_bytes(), kRowBytes);
  // Two rows that come back alone, and a sum of f32.
  EXPECT_EQ(batch.result_bytes(), 2 * kRowBytes + kHidden * 4);
  std::string row(kRowBytes, '\0');
  batch.CopyRows(0, 1, reinterpret_cast<std::byte*>(row.data()));
  EXPECT_EQ(row, message.hidden_states().substr(2 * kRowBytes));

  // As many codes, but a scale too few.
  message.mutable_hidden_states()->resize(3 * kRowBytes - 4);
  std::mt19937 random(8);
  ASSERT_EQ(batch.Decode(Shatter(message.SerializeAsString(), random, 9)),
            absl::OkStatus());
  EXPECT_THAT(batch.Validate().message(),
              HasSubstr("hidden_states has 23 bytes, but num_tokens is 3 and "
                        "hidden_size 5: a row of int8 takes 9"));
}

TEST(BatchCodec, ResultsInCodes) {
  PayloadPool pool;
  constexpr uint32_t kRows = 2;
  constexpr size_t kRowBytes = 4 + kHidden;
  const PayloadRef payload = FilledPayload(pool, kRows * kRowBytes, 4);
  ResultFields fields;
  fields.dtype = DType::kInt8;
  fields.hidden_size = kHidden;
  fields.num_rows = kRows;
  grpc::ByteBuffer bytes;
  ASSERT_EQ(EncodeResult(fields, {payload, {}}, &bytes), absl::OkStatus());
  DecodedResult result;
  ASSERT_EQ(result.Decode(bytes), absl::OkStatus());
  ResultShape shape = {
      .num_rows = kRows, .hidden_size = kHidden, .dtype = DType::kInt8};
  ASSERT_EQ(result.CheckShape(shape), absl::OkStatus());
  std::string rows(kRows * kRowBytes, '\0');
  result.CopyRows(reinterpret_cast<std::byte*>(rows.data()));
  EXPECT_EQ(rows, AsString(payload));
  shape.dtype = DType::kBF16;
  EXPECT_FALSE(result.CheckShape(shape).ok());
}

TEST(BatchCodec, SendingCopiesNoPayload) {
  Example example;
  const std::byte* data = example.payload.data();
  grpc::ByteBuffer bytes;
  ASSERT_EQ(EncodeBatch(example.Fields(), std::move(example.payload), &bytes),
            absl::OkStatus());
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(bytes.Dump(&slices).ok());
  ASSERT_EQ(slices.size(), 2u);
  EXPECT_EQ(static_cast<const void*>(slices[1].begin()), data);
  // gRPC holds the only reference; letting go returns the buffer to the pool.
  EXPECT_NE(example.pool.Acquire(60).data(), data);
  slices.clear();
  bytes.Clear();
  EXPECT_EQ(example.pool.Acquire(60).data(), data);
}

TEST(BatchCodec, ReadsTheGeneratedClassInOddSlices) {
  const Example example;
  const std::string bytes = example.Message().SerializeAsString();
  std::mt19937 random(3);
  for (int round = 0; round < 100; ++round) {
    ExpectIsExample(example, Shatter(bytes, random, 1 + round % 23));
  }
}

TEST(BatchCodec, ReadsFieldsInAnyOrder) {
  const Example example;
  const expert::v1::ExpertBatch whole = example.Message();
  // One message per field; joined in any order they are the same message.
  std::vector<std::string> parts;
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  whole.GetReflection()->ListFields(whole, &fields);
  for (const auto* field : fields) {
    expert::v1::ExpertBatch part = whole;
    for (const auto* other : fields) {
      if (other != field) part.GetReflection()->ClearField(&part, other);
    }
    parts.push_back(part.SerializeAsString());
  }
  ASSERT_EQ(parts.size(), 15u);
  std::reverse(parts.begin(), parts.end());  // hidden_states first
  std::mt19937 random(4);
  for (int round = 0; round < 50; ++round) {
    std::string bytes;
    for (const std::string& part : parts) bytes += part;
    ExpectIsExample(example, Shatter(bytes, random, 11));
    std::shuffle(parts.begin(), parts.end(), random);
  }
}

TEST(BatchCodec, ReadsUnpackedRepeatedFieldsAndSkipsUnknownOnes) {
  const Example example;
  expert::v1::ExpertBatch message = example.Message();
  message.clear_expert_ids();
  message.clear_row_weight();
  std::string bytes;
  for (const char id : {1, 7}) {  // field 7, fixed32
    bytes += std::string({'\x3d', id, 0, 0, 0});
  }
  for (const float weight : example.row_weight) {  // field 10, float
    bytes += '\x55';
    bytes.append(reinterpret_cast<const char*>(&weight), sizeof(weight));
  }
  bytes += std::string("\xa0\x06\x96\x01", 4);  // 100: varint
  bytes += std::string(
      "\xa1\x06"
      "12345678",
      10);  // 100: fixed64
  bytes += std::string(
      "\xa2\x06\x03"
      "abc",
      6);  // 100: bytes
  bytes += std::string(
      "\xa5\x06"
      "1234",
      6);                                               // 100: fixed32
  bytes += std::string("\xa3\x06\x08\x05\xa4\x06", 6);  // 100: group
  bytes += std::string("\x12\x01x", 3);  // layer as bytes: not our field
  bytes += message.SerializeAsString();
  std::mt19937 random(5);
  ExpectIsExample(example, Shatter(bytes, random, 7));
}

TEST(BatchCodec, TheLastOfARepeatedScalarWins) {
  Example example;
  expert::v1::ExpertBatch earlier = example.Message();
  earlier.clear_expert_ids();
  earlier.clear_group_offsets();
  earlier.clear_row_token();
  earlier.clear_row_weight();
  earlier.clear_row_sum();
  earlier.clear_further_traceparents();
  earlier.set_layer(9);
  earlier.set_hidden_states("something else");
  std::mt19937 random(5);
  ExpectIsExample(example, Shatter(earlier.SerializeAsString() +
                                       example.Message().SerializeAsString(),
                                   random, 50));
}

TEST(BatchCodec, CarriesTracesOfFourRequestsAtMost) {
  Example example;
  example.traceparents = {"a", "b", "c", "d", "e", "f"};
  grpc::ByteBuffer bytes;
  ASSERT_EQ(EncodeBatch(example.Fields(), example.payload, &bytes),
            absl::OkStatus());
  DecodedBatch batch;
  ASSERT_EQ(batch.Decode(bytes), absl::OkStatus());
  EXPECT_EQ(batch.Validate(), absl::OkStatus());
  EXPECT_EQ(batch.traceparent(), "a");
  EXPECT_THAT(batch.further_traceparents(), ElementsAre("b", "c", "d"));

  // Another sender's: what is too long, or too many, is left out.
  expert::v1::ExpertBatch message = example.Message();
  message.clear_further_traceparents();
  message.add_further_traceparents(std::string(1 << 20, 'x'));
  for (const char* text : {"g", "h", "i", "j"}) {
    message.add_further_traceparents(text);
  }
  std::mt19937 random(7);
  ASSERT_EQ(batch.Decode(Shatter(message.SerializeAsString(), random, 99)),
            absl::OkStatus());
  EXPECT_EQ(batch.Validate(), absl::OkStatus());
  EXPECT_THAT(batch.further_traceparents(), ElementsAre("g", "h", "i"));

  ASSERT_EQ(batch.Decode(Shatter("", random, 1)), absl::OkStatus());
  EXPECT_TRUE(batch.further_traceparents().empty());
}

TEST(BatchCodec, ABatchIsReused) {
  const Example example;
  DecodedBatch batch;
  std::mt19937 random(6);
  ASSERT_EQ(
      batch.Decode(Shatter(example.Message().SerializeAsString(), random, 9)),
      absl::OkStatus());
  const uint32_t* ids = batch.expert_ids().data();
  expert::v1::ExpertBatch second;
  second.set_data_type(expert::v1::DATA_TYPE_BF16);
  second.set_hidden_size(2);
  second.set_num_tokens(1);
  second.add_expert_ids(4);
  second.add_group_offsets(0);
  second.add_group_offsets(1);
  second.add_row_token(0);
  second.set_hidden_states("abcd");
  ASSERT_EQ(batch.Decode(Shatter(second.SerializeAsString(), random, 9)),
            absl::OkStatus());
  ASSERT_EQ(batch.Validate(), absl::OkStatus());
  EXPECT_EQ(batch.expert_ids().data(), ids);  // the same memory
  EXPECT_THAT(batch.expert_ids(), ElementsAre(4));
  EXPECT_EQ(batch.sequence_number(), 0u);
  EXPECT_EQ(batch.traceparent(), "");
  EXPECT_EQ(batch.dtype(), DType::kBF16);
  char row[4];
  batch.CopyRows(0, 1, reinterpret_cast<std::byte*>(row));
  EXPECT_EQ(std::string(row, 4), "abcd");
}

TEST(BatchCodec, ABatchOfOddSizeKeepsNoMemory) {
  std::mt19937 random(6);
  expert::v1::ExpertBatch odd;
  odd.mutable_row_token()->Resize(1 << 20, 7);
  odd.set_traceparent(std::string(1 << 20, 'a'));
  DecodedBatch batch;
  ASSERT_EQ(batch.Decode(Shatter(odd.SerializeAsString(), random, 9)),
            absl::OkStatus());
  EXPECT_LT(batch.traceparent().size(), 1000u);
  EXPECT_FALSE(batch.Validate().ok());
  EXPECT_GE(batch.capacity_bytes(), size_t{4} << 20);
  batch.Release();
  EXPECT_LE(batch.capacity_bytes(), size_t{1} << 20);

  // What batches need is kept for the next one.
  ASSERT_EQ(
      batch.Decode(Shatter(Example().Message().SerializeAsString(), random, 9)),
      absl::OkStatus());
  const size_t kept = batch.capacity_bytes();
  batch.Release();
  EXPECT_EQ(batch.capacity_bytes(), kept);
  EXPECT_GT(kept, 0u);
}

TEST(BatchCodec, ValidateNamesWhatIsWrong) {
  using Message = expert::v1::ExpertBatch;
  const struct {
    std::function<void(Message&)> change;
    const char* expected;
  } cases[] = {
      {[](Message& m) { m.clear_data_type(); }, "data_type 0"},
      {[](Message& m) { m.set_data_type(expert::v1::DataType(9)); },
       "data_type 9"},
      {[](Message& m) { m.clear_hidden_size(); }, "hidden_size is 0"},
      {[](Message& m) { m.set_hidden_size(6); }, "hidden_states has 60 bytes"},
      {[](Message& m) { m.set_num_tokens(4); }, "hidden_states has 60 bytes"},
      {[](Message& m) { m.clear_hidden_states(); }, "hidden_states has 0"},
      {[](Message& m) { m.set_expert_ids(1, 1); }, "expert_ids[1]"},
      {[](Message& m) { m.set_expert_ids(1, 0); }, "expert_ids[1]"},
      {[](Message& m) { m.add_expert_ids(8); }, "group_offsets has 3"},
      {[](Message& m) { m.clear_group_offsets(); }, "group_offsets has 0"},
      {[](Message& m) { m.set_group_offsets(0, 1); }, "from 1 to 4"},
      {[](Message& m) { m.set_group_offsets(2, 5); }, "from 0 to 5"},
      {[](Message& m) {
         m.add_row_token(0);
         m.add_row_weight(0);
         m.add_row_sum(kNoSum);
       },
       "from 0 to 4"},
      {[](Message& m) { m.set_group_offsets(1, 0xffffffff); },
       "more rows than the 3 tokens"},
      {[](Message& m) { m.set_row_token(3, 3); }, "row_token[3] is 3"},
      {[](Message& m) { m.set_row_sum(3, 1); },
       "row_sum[3] is 1, but num_sums is 1"},
      {[](Message& m) { m.clear_num_sums(); }, "row_sum[0] is 0"},
      {[](Message& m) { m.set_num_sums(3); }, "only 2 rows go into sums"},
      {[](Message& m) { m.clear_row_weight(); },
       "row_sum and row_weight have 4 and 0 elements for 4 rows"},
      {[](Message& m) { m.clear_row_sum(); },
       "row_sum and row_weight have 0 and 4 elements for 4 rows"},
      {[](Message& m) { m.add_row_sum(kNoSum); }, "have 5 and 4"},
      {[](Message& m) {
         m.clear_row_sum();
         m.clear_row_weight();
       },
       "have 0 and 0"},
      {[](Message& m) { m.set_row_weight(3, std::nanf("")); },
       "row_weight[3] is not finite"},
      {[](Message& m) { m.set_row_weight(0, HUGE_VALF); },
       "row_weight[0] is not finite"},
      {[](Message& m) { m.set_traceparent(std::string(300, 'a')); },
       "traceparent"},
      {[](Message& m) { m.set_traceparent("line\nbreak"); }, "traceparent"},
      {[](Message& m) {
         m.set_expert_ids(0, 0);
         m.add_expert_ids(9);
         m.set_group_offsets(1, 3);
         m.set_group_offsets(2, 2);
         m.add_group_offsets(4);
       },
       "group_offsets[2] is below"},
      // 2^32 - 1 squared times four does not fit 64 bits.
      {[](Message& m) {
         m.set_hidden_size(0xffffffff);
         m.set_num_tokens(0xffffffff);
       },
       "hidden_states has 60 bytes"},
      // 2^31 * 2^31 * 4 is 0 in 64 bits.
      {[](Message& m) {
         m.set_hidden_size(1u << 31);
         m.set_num_tokens(1u << 31);
         m.clear_hidden_states();
       },
       "hidden_states has 0 bytes"},
      // Few bytes in, many out.
      {[](Message& m) {
         m.set_num_tokens(1);
         m.set_hidden_size(1 << 20);
         m.set_hidden_states(std::string(4 << 20, 'x'));
         m.clear_row_token();
         m.clear_row_weight();
         m.clear_row_sum();
         m.clear_num_sums();
         m.clear_expert_ids();
         m.clear_group_offsets();
         m.add_group_offsets(0);
         for (int i = 0; i < 64; ++i) {
           m.add_expert_ids(i);
           m.add_row_token(0);
           m.add_group_offsets(i + 1);
         }
       },
       "send the rows in parts"},
  };
  const Example example;
  std::mt19937 random(8);
  for (const auto& c : cases) {
    Message message = example.Message();
    c.change(message);
    DecodedBatch batch;
    ASSERT_EQ(batch.Decode(Shatter(message.SerializeAsString(), random, 99999)),
              absl::OkStatus());
    EXPECT_EQ(batch.sequence_number(), 1'000'000'000'007u);
    const absl::Status status = batch.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.expected;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.expected));
  }
}

TEST(BatchCodec, AnEmptyBatchIsValid) {
  const uint32_t zero = 0;
  const BatchFields fields = {.hidden_size = 4, .group_offsets = {&zero, 1}};
  grpc::ByteBuffer bytes;
  ASSERT_EQ(EncodeBatch(fields, PayloadRef(), &bytes), absl::OkStatus());
  DecodedBatch batch;
  ASSERT_EQ(batch.Decode(bytes), absl::OkStatus());
  EXPECT_EQ(batch.Validate(), absl::OkStatus());
  EXPECT_EQ(batch.num_rows(), 0u);
}

TEST(BatchCodec, EncodingRefusesWhatDoesNotTravel) {
  const Example example;
  grpc::ByteBuffer bytes;
  BatchFields fields = example.Fields();
  fields.dtype = DType::kF16;
  EXPECT_EQ(EncodeBatch(fields, example.payload, &bytes).code(),
            absl::StatusCode::kInvalidArgument);
  fields = example.Fields();
  fields.num_tokens = 4;
  EXPECT_THAT(
      std::string(EncodeBatch(fields, example.payload, &bytes).message()),
      HasSubstr("60 bytes, its shape 80"));
  fields.num_tokens = fields.hidden_size = 0xffffffff;
  EXPECT_THAT(
      std::string(EncodeBatch(fields, example.payload, &bytes).message()),
      HasSubstr("largest message"));
}

// 64 rows of 4 MiB would not fit an answer, nor would 64 sums; one of them
// does.
TEST(BatchCodec, SumsCountAsWhatComesBack) {
  constexpr uint32_t kRows = 64;
  expert::v1::ExpertBatch m;
  m.set_data_type(expert::v1::DATA_TYPE_F32);
  m.set_num_tokens(1);
  m.set_hidden_size(1 << 20);
  m.set_hidden_states(std::string(4 << 20, 'x'));
  m.add_group_offsets(0);
  for (uint32_t i = 0; i < kRows; ++i) {
    m.add_expert_ids(i);
    m.add_row_token(0);
    m.add_row_weight(1);
    m.add_row_sum(i);
    m.add_group_offsets(i + 1);
  }
  m.set_num_sums(kRows);
  std::mt19937 random(8);
  DecodedBatch batch;
  ASSERT_TRUE(batch.Decode(Shatter(m.SerializeAsString(), random, 9999)).ok());
  EXPECT_THAT(std::string(batch.Validate().message()),
              HasSubstr("send the rows in parts"));
  m.mutable_row_sum()->Clear();
  m.mutable_row_sum()->Resize(kRows, 0);
  m.set_num_sums(1);
  ASSERT_TRUE(batch.Decode(Shatter(m.SerializeAsString(), random, 9999)).ok());
  EXPECT_EQ(batch.Validate(), absl::OkStatus());
  EXPECT_EQ(batch.result_bytes(), size_t{4} << 20);
}

TEST(ResultCodec, RoundTripBothWays) {
  PayloadPool pool;
  const PayloadRef payload = FilledPayload(pool, 7 * 3 * 2, 2);
  const PayloadRef sums = FilledPayload(pool, 2 * 3 * 4, 3);
  const ResultFields fields = {.sequence_number = 99,
                               .dtype = DType::kBF16,
                               .hidden_size = 3,
                               .num_rows = 7,
                               .num_sums = 2,
                               .queue_us = 12,
                               .compute_us = 4000,
                               .credit_rows = 512};
  grpc::ByteBuffer bytes;
  ASSERT_EQ(EncodeResult(fields, {payload, sums}, &bytes), absl::OkStatus());
  expert::v1::ExpertResult message;
  ASSERT_TRUE(message.ParseFromString(Flatten(bytes)));
  EXPECT_EQ(message.code(), expert::v1::CODE_OK);
  EXPECT_EQ(message.num_rows(), 7u);
  EXPECT_EQ(message.credit_rows(), 512u);
  EXPECT_EQ(message.hidden_states(), AsString(payload));
  EXPECT_EQ(message.num_sums(), 2u);
  EXPECT_EQ(message.partial_sums(), AsString(sums));

  std::mt19937 random(9);
  DecodedResult result;
  for (int round = 0; round < 50; ++round) {
    ASSERT_EQ(result.Decode(Shatter(message.SerializeAsString(), random, 13)),
              absl::OkStatus());
    EXPECT_EQ(result.sequence_number(), 99u);
    EXPECT_EQ(result.code(), expert::v1::CODE_OK);
    EXPECT_EQ(result.queue_us(), 12u);
    EXPECT_EQ(result.compute_us(), 4000u);
    EXPECT_EQ(result.credit_rows(), 512u);
    ASSERT_EQ(result.CheckShape({.num_rows = 7,
                                 .num_sums = 2,
                                 .hidden_size = 3,
                                 .dtype = DType::kBF16}),
              absl::OkStatus());
    std::string rows(payload.size(), '\0');
    result.CopyRows(reinterpret_cast<std::byte*>(rows.data()));
    EXPECT_EQ(rows, AsString(payload));
    std::string sum(12, '\0');
    result.CopySum(1, reinterpret_cast<std::byte*>(sum.data()));
    EXPECT_EQ(sum, AsString(sums).substr(12));
  }
}

TEST(ResultCodec, AnErrorCarriesItsMessage) {
  grpc::ByteBuffer bytes;
  ASSERT_EQ(EncodeResult({.sequence_number = 5,
                          .code = expert::v1::CODE_NOT_HOSTED,
                          .message = "expert 3 is not loaded"},
                         {}, &bytes),
            absl::OkStatus());
  DecodedResult result;
  ASSERT_EQ(result.Decode(bytes), absl::OkStatus());
  EXPECT_EQ(result.code(), expert::v1::CODE_NOT_HOSTED);
  EXPECT_EQ(result.message(), "expert 3 is not loaded");

  expert::v1::ExpertResult talkative;
  talkative.set_message(std::string(1 << 20, 'a'));
  std::mt19937 random(6);
  ASSERT_EQ(result.Decode(Shatter(talkative.SerializeAsString(), random, 9)),
            absl::OkStatus());
  EXPECT_EQ(result.message(), std::string(4096, 'a'));
}

TEST(ResultCodec, CheckShapeRefusesAnotherShape) {
  expert::v1::ExpertResult message;
  message.set_data_type(expert::v1::DATA_TYPE_F32);
  message.set_hidden_size(2);
  message.set_num_rows(3);
  message.set_hidden_states(std::string(24, 'x'));
  message.set_num_sums(1);
  message.set_partial_sums(std::string(8, 'y'));
  std::mt19937 random(10);
  DecodedResult result;
  ASSERT_EQ(result.Decode(Shatter(message.SerializeAsString(), random, 9)),
            absl::OkStatus());
  const auto fits = [&](uint32_t rows, uint32_t sums, uint32_t hidden,
                        DType dtype) {
    return result.CheckShape({rows, sums, hidden, dtype}).ok();
  };
  EXPECT_TRUE(fits(3, 1, 2, DType::kF32));
  EXPECT_FALSE(fits(2, 1, 2, DType::kF32));
  EXPECT_FALSE(fits(3, 0, 2, DType::kF32));
  EXPECT_FALSE(fits(3, 1, 3, DType::kF32));
  EXPECT_FALSE(fits(3, 1, 2, DType::kBF16));
  for (const auto& [rows_bytes, sums_bytes] :
       {std::pair(23, 8), {24, 7}, {24, 9}, {32, 0}}) {
    message.set_hidden_states(std::string(rows_bytes, 'x'));
    message.set_partial_sums(std::string(sums_bytes, 'y'));
    ASSERT_EQ(result.Decode(Shatter(message.SerializeAsString(), random, 9)),
              absl::OkStatus());
    EXPECT_FALSE(fits(3, 1, 2, DType::kF32)) << rows_bytes;
  }
}

}  // namespace
}  // namespace expertmesh
