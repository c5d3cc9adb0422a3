// Headers that lie are refused with one line; no bytes crash the reader.

#include "services/checkpoint/safetensors.h"

#include <unistd.h>

#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/safetensors_writer.h"

namespace expertmesh {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::SafetensorsBytes;
using testing::StoredTensor;
using testing::TempFolder;
using testing::WriteFile;

// The status of opening a file with these bytes, called "weights.safetensors".
absl::Status OpenBytes(const TempFolder& folder, absl::string_view bytes) {
  const std::string path = folder.File("weights.safetensors");
  WriteFile(path, bytes);
  return SafetensorsFile::Open(path).status();
}

MATCHER_P(IsOneLineWith, part, "") {
  const std::string message(arg.message());
  *result_listener << arg;
  return arg.code() == absl::StatusCode::kFailedPrecondition &&
         message.find("weights.safetensors: ") != std::string::npos &&
         message.find('\n') == std::string::npos &&
         message.find(part) != std::string::npos;
}

std::vector<StoredTensor> TwoTensors() {
  return {{"a", "F32", {2, 2}, std::string(16, '\1')},
          {"b", "BF16", {3}, std::string(6, '\2')}};
}

TEST(SafetensorsTest, FindsTensorsAndTheirBytes) {
  const TempFolder folder;
  const std::string path = folder.File("weights.safetensors");
  WriteFile(path, SafetensorsBytes(TwoTensors()));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 2u);
  const TensorInfo* b = file->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, "BF16");
  EXPECT_THAT(b->shape, ::testing::ElementsAre(3));
  EXPECT_EQ(std::memcmp(file->data(*b), "\2\2\2\2\2\2", 6), 0);
  EXPECT_EQ(file->Find("c"), nullptr);
}

TEST(SafetensorsTest, AcceptsWhatTheFormatAllows) {
  const TempFolder folder;
  // Metadata, trailing spaces, a scalar, an empty tensor, types never read,
  // unknown fields of an entry.
  const std::string header =
      R"({"__metadata__":{"format":"pt"},)"
      R"("scalar":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
      R"("empty":{"dtype":"F32","shape":[0,4],"data_offsets":[8,8]},)"
      R"("f4":{"dtype":"F4","shape":[2,2],"data_offsets":[8,10],"x":1}}   )";
  EXPECT_TRUE(
      OpenBytes(folder, SafetensorsBytes(header, std::string(10, 'x'))).ok());
  EXPECT_TRUE(OpenBytes(folder, SafetensorsBytes("{}", "")).ok());
}

struct BadHeader {
  std::string header;
  std::string data;
  std::string complaint;
};

class BadHeaderTest : public ::testing::TestWithParam<BadHeader> {};

TEST_P(BadHeaderTest, IsRefused) {
  const TempFolder folder;
  EXPECT_THAT(
      OpenBytes(folder, SafetensorsBytes(GetParam().header, GetParam().data)),
      IsOneLineWith(GetParam().complaint));
}

// One entry named "w" of type F32 and shape [2] unless said otherwise.
BadHeader Entry(const std::string& fields, const std::string& complaint) {
  return {R"({"w":{)" + fields + "}}", std::string(8, 'x'),
          "tensor 'w': " + complaint};
}

INSTANTIATE_TEST_SUITE_P(
    Entries, BadHeaderTest,
    ::testing::Values(
        Entry(R"("shape":[2],"data_offsets":[0,8])", "has no dtype"),
        Entry(R"("dtype":7,"shape":[2],"data_offsets":[0,8])", "has no dtype"),
        Entry(R"("dtype":"F33","shape":[2],"data_offsets":[0,8])",
              "unknown dtype 'F33'"),
        Entry(R"("dtype":"F32","data_offsets":[0,8])", "has no shape"),
        Entry(R"("dtype":"F32","shape":2,"data_offsets":[0,8])",
              "has no shape"),
        Entry(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])",
              "shape [-2] is not"),
        Entry(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])",
              "shape [2.0] is not"),
        Entry(R"("dtype":"F32","shape":["2"],"data_offsets":[0,8])", "shape ["),
        Entry(R"("dtype":"F32","shape":[18446744073709551615],)"
              R"("data_offsets":[0,8])",
              "shape ["),
        Entry(R"("dtype":"F32","shape":[99999999999999999999],)"
              R"("data_offsets":[0,8])",
              "shape ["),
        Entry(R"("dtype":"F32","shape":[4294967296,4294967296,4],)"
              R"("data_offsets":[0,8])",
              "its shape is too large"),
        Entry(R"("dtype":"F32","shape":[2])", "data_offsets must be"),
        Entry(R"("dtype":"F32","shape":[2],"data_offsets":[0])",
              "data_offsets must be"),
        Entry(R"("dtype":"F32","shape":[2],"data_offsets":[-8,0])",
              "data_offsets must be"),
        Entry(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])",
              "data_offsets [8,0] are reversed"),
        Entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,16])",
              "data_offsets [0,16] lie beyond the end of the file"),
        Entry(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])",
              "holds 8 bytes, but dtype F32 and shape need 12"),
        Entry(R"("dtype":"F16","shape":[2],"data_offsets":[0,8])",
              "holds 8 bytes, but dtype F16 and shape need 4"),
        Entry(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])",
              "is preceded by 4 bytes that belong to no tensor"),
        Entry(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])",
              "is followed by 4 bytes that belong to no tensor")));

INSTANTIATE_TEST_SUITE_P(
    Headers, BadHeaderTest,
    ::testing::Values(
        BadHeader{"", "", "not a JSON object"},
        BadHeader{" {}", "", "not a JSON object"},
        BadHeader{"[]", "", "not a JSON object"},
        BadHeader{"{", "", "malformed JSON at byte"},
        BadHeader{"{}}", "", "malformed JSON at byte"},
        BadHeader{"{\"\xff\":{}}", "", "malformed JSON at byte"},
        BadHeader{R"({"w":{"shape":[NaN]}})", "", "malformed JSON"},
        BadHeader{R"({"w":[]})", "", "tensor 'w': must be a JSON object"},
        BadHeader{R"({"two\nlines":[]})", "", R"(tensor 'two\nlines')"},
        BadHeader{"{}", "x", "ends with 1 bytes that belong to no tensor"},
        BadHeader{R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                  R"("w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                  "xx", "key 'w' appears twice"},
        BadHeader{R"({"w":{"dtype":"U8","dtype":"I8","shape":[1],)"
                  R"("data_offsets":[0,1]}})",
                  "x", "key 'dtype' appears twice"},
        BadHeader{R"({"v":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                  R"("w":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
                  "xxxxxx", "tensor 'w': overlaps tensor 'v'"}));

TEST(SafetensorsTest, RefusesLengthsThatCannotBe) {
  const TempFolder folder;
  EXPECT_THAT(OpenBytes(folder, ""), IsOneLineWith("too few"));
  EXPECT_THAT(OpenBytes(folder, "1234567"), IsOneLineWith("too few"));
  EXPECT_THAT(OpenBytes(folder, std::string(8, '\xff')),
              IsOneLineWith("its header claims 18446744073709551615 bytes, "
                            "but only 0 follow"));
  std::string longer = SafetensorsBytes("{}", "");
  longer[0] = 3;
  EXPECT_THAT(OpenBytes(folder, longer),
              IsOneLineWith("claims 3 bytes, but only 2 follow"));
}

TEST(SafetensorsTest, RefusesAnAbsurdHeader) {
  // A sparse file, so that the header does fit.
  const TempFolder folder;
  const std::string path = folder.File("weights.safetensors");
  std::string length(8, '\0');
  const uint64_t header_bytes = 200'000'000;
  std::memcpy(length.data(), &header_bytes, sizeof(header_bytes));
  WriteFile(path, length);
  ASSERT_EQ(truncate(path.c_str(), 300'000'000), 0);
  EXPECT_THAT(SafetensorsFile::Open(path).status(),
              IsOneLineWith("more than the format's limit"));
}

TEST(SafetensorsTest, RefusesDeepNesting) {
  const TempFolder folder;
  const std::string header = R"({"w":)" + std::string(1'000'000, '[');
  EXPECT_THAT(OpenBytes(folder, SafetensorsBytes(header, "")),
              IsOneLineWith("nested deeper than 32"));
}

TEST(SafetensorsTest, NamesAMissingFileAndAFolder) {
  const TempFolder folder;
  const absl::Status missing =
      SafetensorsFile::Open(folder.File("none.safetensors")).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("none.safetensors"));
  EXPECT_EQ(SafetensorsFile::Open(folder.path()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

// Every prefix of a sound file is refused: the bytes must be covered exactly.
TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const TempFolder folder;
  const std::string whole = SafetensorsBytes(TwoTensors());
  ASSERT_TRUE(OpenBytes(folder, whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT(OpenBytes(folder, whole.substr(0, size)), IsOneLineWith(""))
        << "prefix of " << size << " bytes";
  }
}

TEST(SafetensorsTest, ErrorsStayShort) {
  const TempFolder folder;
  const std::string header = R"({"w":{"dtype":"F32","shape":[-1)" + [] {
    std::string ones;
    for (int i = 0; i < 100'000; ++i) ones += ",1";
    return ones;
  }() + "]}}";
  const absl::Status status = OpenBytes(folder, SafetensorsBytes(header, ""));
  EXPECT_THAT(status, IsOneLineWith("shape [-1,1,1"));
  EXPECT_LT(status.message().size(), 500u);
}

// Damaged headers are refused or, where the damage is harmless (a letter of a
// name), read; whatever is read stays inside the data.
TEST(SafetensorsTest, DamagedHeadersNeverLeadOutOfTheFile) {
  const std::string whole = SafetensorsBytes(TwoTensors());
  constexpr uint64_t kDataBytes = 22;
  const std::string header = whole.substr(8, whole.size() - 8 - kDataBytes);
  std::mt19937 random(20240607);
  int refused = 0;
  constexpr int kRounds = 20'000;
  for (int round = 0; round < kRounds; ++round) {
    std::string damaged = header;
    const int flips = 1 + static_cast<int>(random() % 3);
    for (int i = 0; i < flips; ++i) {
      damaged[random() % damaged.size()] ^=
          static_cast<char>(1u << (random() % 8));
    }
    const auto tensors =
        ParseSafetensorsHeader("weights.safetensors", damaged, kDataBytes);
    if (!tensors.ok()) {
      ++refused;
      EXPECT_THAT(tensors.status(), IsOneLineWith(""));
      continue;
    }
    for (const TensorInfo& tensor : *tensors) {
      EXPECT_LE(tensor.begin, tensor.end);
      EXPECT_LE(tensor.end, kDataBytes);
    }
  }
  EXPECT_GT(refused, kRounds / 2);
  EXPECT_LT(refused, kRounds);
}

// The same through files, the length field included.
TEST(SafetensorsTest, DamagedFilesNeverCrash) {
  const TempFolder folder;
  const std::string whole = SafetensorsBytes(TwoTensors());
  std::mt19937 random(42);
  for (int round = 0; round < 200; ++round) {
    std::string damaged = whole;
    damaged[random() % 16] ^= static_cast<char>(1u << (random() % 8));
    const absl::Status status = OpenBytes(folder, damaged);
    if (!status.ok()) {
      EXPECT_THAT(status, IsOneLineWith(""));
    }
  }
}

}  // namespace
}  // namespace expertmesh
