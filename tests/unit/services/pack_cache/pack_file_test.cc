// A file of packed weights is used only if it is exactly what was written.

#include "services/pack_cache/pack_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <random>

#include "services/linalg/isa/panel_layout.h"
#include "tests/support/safetensors_writer.h"

namespace expertmesh {
namespace {

using expertmesh::testing::ReadFile;
using expertmesh::testing::TempFolder;
using expertmesh::testing::WriteFile;

constexpr size_t kPage = 4096;
const PackSource kSource = {"0123456789abcdef", 77};

PackedMatrix MakeMatrix(int64_t n, int64_t k, WeightFormat format) {
  std::mt19937 random(static_cast<uint32_t>(n + k));
  std::normal_distribution<float> normal;
  std::vector<float> values(n * k);
  for (float& value : values) value = normal(random);
  const TensorView view = {
      reinterpret_cast<const std::byte*>(values.data()), DType::kF32, {n, k}};
  return *PackedMatrix::Pack(view, format);
}

std::vector<PackedMatrix> MakeMatrices() {
  return {MakeMatrix(70, 100, WeightFormat::kInt4),
          MakeMatrix(3, 40, WeightFormat::kInt8),
          MakeMatrix(64, 32, WeightFormat::kF32),
          MakeMatrix(5, 7, WeightFormat::kBF16)};
}

class PackFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WritePackFile(path_, kSource, matrices_).ok());
    bytes_ = ReadFile(path_);
  }

  absl::Status Read(const std::string& bytes,
                    const PackSource& source = kSource) {
    const std::string other = folder_.File("other");
    WriteFile(other, bytes);
    const auto read = ReadPackFile(other, source);
    if (!read.ok()) {
      EXPECT_NE(read.status().message().find(other), std::string::npos);
    }
    return read.status();
  }

  const TempFolder folder_;
  const std::string path_ = folder_.File("matrices");
  const std::vector<PackedMatrix> matrices_ = MakeMatrices();
  std::string bytes_;
};

TEST_F(PackFileTest, GivesBackWhatWasWritten) {
  const auto read = ReadPackFile(path_, kSource);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), matrices_.size());
  for (size_t i = 0; i < matrices_.size(); ++i) {
    const PackedMatrix& matrix = (*read)[i];
    EXPECT_EQ(matrix.n(), matrices_[i].n());
    EXPECT_EQ(matrix.k(), matrices_[i].k());
    EXPECT_EQ(matrix.format(), matrices_[i].format());
    ASSERT_EQ(matrix.size_bytes(), matrices_[i].size_bytes());
    EXPECT_EQ(std::memcmp(matrix.panel(0), matrices_[i].panel(0),
                          matrix.size_bytes()),
              0);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(matrix.panel(0)) % 64, 0u);
  }
}

TEST_F(PackFileTest, OutlivesItsNameAndItsNeighbours) {
  std::optional<PackedMatrix> last;
  {
    auto read = ReadPackFile(path_, kSource);
    ASSERT_TRUE(read.ok());
    last = read->back();
  }
  ASSERT_EQ(unlink(path_.c_str()), 0);
  EXPECT_EQ(std::memcmp(last->panel(0), matrices_.back().panel(0),
                        last->size_bytes()),
            0);
}

TEST_F(PackFileTest, RefusesEveryTruncation) {
  EXPECT_TRUE(Read(bytes_).ok());
  std::vector<size_t> sizes = {0, 1, 8, kPage - 1, bytes_.size() - 1};
  for (size_t page = kPage; page < bytes_.size(); page += kPage) {
    for (const size_t size : {page - 1, page, page + 1}) sizes.push_back(size);
  }
  for (const size_t size : sizes) {
    EXPECT_EQ(Read(bytes_.substr(0, size)).code(),
              absl::StatusCode::kFailedPrecondition)
        << size;
  }
  EXPECT_FALSE(Read(bytes_ + std::string(1, '\0')).ok());
  EXPECT_EQ(ReadPackFile(folder_.File("none"), kSource).status().code(),
            absl::StatusCode::kNotFound);
}

// Every byte of the header and of each matrix; what lies between them is not
// used.
TEST_F(PackFileTest, RefusesEveryFlippedByte) {
  std::vector<size_t> places;
  for (size_t i = 0; i < 64; ++i) places.push_back(i);
  for (size_t i = 64; i < 300; i += 7) places.push_back(i);
  size_t begin = kPage;
  for (const PackedMatrix& matrix : matrices_) {
    const size_t size = matrix.size_bytes();
    for (const size_t at : {size_t{0}, size / 3, size / 2, size - 1}) {
      places.push_back(begin + at);
    }
    begin += (size + kPage - 1) / kPage * kPage;
  }
  ASSERT_EQ(begin, bytes_.size());
  for (const size_t place : places) {
    for (const char flip : {1, -128}) {
      std::string bytes = bytes_;
      bytes[place] = static_cast<char>(bytes[place] ^ flip);
      EXPECT_EQ(Read(bytes).code(), absl::StatusCode::kFailedPrecondition)
          << place;
    }
  }
}

TEST_F(PackFileTest, RefusesOtherWeights) {
  EXPECT_FALSE(Read(bytes_, {"0123456789abcdee", 77}).ok());
  EXPECT_FALSE(Read(bytes_, {"0123456789abcde", 77}).ok());
  EXPECT_FALSE(Read(bytes_, {"0123456789abcdef", 78}).ok());
  // Where no tensor is at hand, the fingerprint alone tells.
  EXPECT_TRUE(Read(bytes_, {"0123456789abcdef", 0}).ok());
}

TEST_F(PackFileTest, ChecksumSeesEveryWord) {
  std::string bytes(3000, 'x');
  const uint64_t before = PackChecksum(bytes);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] ^= 1;
    EXPECT_NE(PackChecksum(bytes), before) << i;
    bytes[i] ^= 1;
  }
  EXPECT_NE(PackChecksum(std::string(64, '\0')),
            PackChecksum(std::string(65, '\0')));
}

}  // namespace
}  // namespace expertmesh
