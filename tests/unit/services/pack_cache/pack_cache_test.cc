// The folder of packed weights: shared, repaired, and never a reason to fail.

#include "services/pack_cache/pack_cache.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "tests/support/safetensors_writer.h"

namespace expertmesh {
namespace {

namespace fs = std::filesystem;
using expertmesh::testing::ReadFile;
using expertmesh::testing::TempFolder;
using expertmesh::testing::WriteFile;

constexpr char kFingerprint[] = "00112233445566ff";

PackedMatrix MakeMatrix(float first) {
  std::vector<float> values(64 * 40);
  for (float& value : values) value = first++;
  const TensorView view = {
      reinterpret_cast<const std::byte*>(values.data()), DType::kF32, {64, 40}};
  return *PackedMatrix::Pack(view);
}

bool Same(const PackedMatrix& a, const PackedMatrix& b) {
  return a.size_bytes() == b.size_bytes() &&
         std::memcmp(a.panel(0), b.panel(0), a.size_bytes()) == 0;
}

class PackCacheTest : public ::testing::Test {
 protected:
  std::string PathOf(const std::string& name) const {
    return folder_.path() + "/" + kFingerprint + "/" + name + ".pack";
  }
  size_t NumFiles() const {
    size_t count = 0;
    for (const auto& entry : fs::recursive_directory_iterator(folder_.path())) {
      count += entry.is_regular_file() ? 1 : 0;
    }
    return count;
  }

  const TempFolder folder_;
  const PackedMatrix matrix_ = MakeMatrix(1);
};

TEST_F(PackCacheTest, KeepsMatricesForTheNextStart) {
  {
    PackCache cache(folder_.path(), kFingerprint);
    EXPECT_TRUE(cache.Load("slot", 5).empty());
    cache.Store("slot", 5, {matrix_, MakeMatrix(9)});
    EXPECT_EQ(cache.hits(), 0);
    EXPECT_EQ(cache.misses(), 1);
    EXPECT_EQ(cache.stored(), 1);
  }
  PackCache cache(folder_.path(), kFingerprint);
  const std::vector<PackedMatrix> kept = cache.Load("slot", 5);
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_TRUE(Same(kept[0], matrix_));
  EXPECT_TRUE(Same(kept[1], MakeMatrix(9)));
  EXPECT_TRUE(cache.Load("another", 5).empty());
  EXPECT_EQ(cache.hits(), 1);
  EXPECT_EQ(cache.misses(), 1);
}

TEST_F(PackCacheTest, OfAnotherCheckpointIsNotFound) {
  PackCache cache(folder_.path(), kFingerprint);
  cache.Store("slot", 5, {matrix_});
  PackCache other(folder_.path(), "ffffffffffffffff");
  EXPECT_TRUE(other.Load("slot", 5).empty());
  // The same headers, but other weights.
  EXPECT_TRUE(cache.Load("slot", 6).empty());
}

TEST_F(PackCacheTest, ReplacesWhatIsBroken) {
  PackCache cache(folder_.path(), kFingerprint);
  cache.Store("slot", 5, {matrix_});
  const std::string good = ReadFile(PathOf("slot"));
  std::string flipped = good;
  flipped[5000] ^= 1;
  for (const std::string& broken : {std::string(), std::string("not ours"),
                                    good.substr(0, 5000), flipped}) {
    unlink(PathOf("slot").c_str());
    WriteFile(PathOf("slot"), broken);
    EXPECT_TRUE(cache.Load("slot", 5).empty());
    cache.Store("slot", 5, {matrix_});
    const std::vector<PackedMatrix> kept = cache.Load("slot", 5);
    ASSERT_EQ(kept.size(), 1u);
    EXPECT_TRUE(Same(kept[0], matrix_));
  }
  EXPECT_EQ(NumFiles(), 1u);
}

// Whoever is reading a file goes on with what it was.
TEST_F(PackCacheTest, AReplacedFileIsNotWrittenOver) {
  PackCache cache(folder_.path(), kFingerprint);
  cache.Store("slot", 5, {matrix_});
  const std::string before = ReadFile(PathOf("slot"));
  std::ifstream reader(PathOf("slot"), std::ios::binary);
  cache.Store("slot", 5, {MakeMatrix(100)});
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(reader), {}), before);
  EXPECT_TRUE(Same(cache.Load("slot", 5)[0], MakeMatrix(100)));
}

TEST_F(PackCacheTest, WithoutAFolderNothingIsKept) {
  WriteFile(folder_.File("file"), "");
  PackCache cache(folder_.File("file"), kFingerprint);
  cache.Store("slot", 5, {matrix_});
  EXPECT_TRUE(cache.Load("slot", 5).empty());
  EXPECT_EQ(cache.stored(), 0);
}

// A full disk: writes fail, nothing is left behind, and what is there serves.
TEST_F(PackCacheTest, AFileThatCannotBeWrittenLeavesNothing) {
  PackCache cache(folder_.path(), kFingerprint);
  cache.Store("slot", 5, {matrix_});
  fs::create_directory(PathOf("taken"));
  cache.Store("taken", 5, {matrix_});  // cannot be renamed over a folder
  EXPECT_EQ(cache.stored(), 1);
  EXPECT_EQ(NumFiles(), 1u);
  EXPECT_EQ(cache.Load("slot", 5).size(), 1u);
}

TEST_F(PackCacheTest, WritersAndReadersAtOnce) {
  constexpr int kTimes = 50;
  const auto write = [&] {
    PackCache cache(folder_.path(), kFingerprint);
    for (int i = 0; i < kTimes; ++i) cache.Store("slot", 5, {matrix_});
    EXPECT_EQ(cache.stored(), kTimes);
  };
  std::thread first(write), second(write);
  PackCache cache(folder_.path(), kFingerprint);
  for (int i = 0; i < kTimes; ++i) {
    for (const PackedMatrix& kept : cache.Load("slot", 5)) {
      EXPECT_TRUE(Same(kept, matrix_));
    }
  }
  first.join();
  second.join();
  EXPECT_EQ(cache.Load("slot", 5).size(), 1u);
  EXPECT_EQ(NumFiles(), 1u);
}

TEST_F(PackCacheTest, RemovesWhatKilledWritersLeft) {
  { PackCache cache(folder_.path(), kFingerprint); }
  const fs::path folder = fs::path(folder_.path()) / kFingerprint;
  const fs::path old_file = folder / "slot.1.1.tmp";
  const fs::path new_file = folder / "slot.2.1.tmp";
  for (const fs::path& path : {old_file, new_file}) WriteFile(path, "half");
  fs::last_write_time(old_file,
                      fs::file_time_type::clock::now() - std::chrono::hours(2));
  { PackCache cache(folder_.path(), kFingerprint); }
  EXPECT_FALSE(fs::exists(old_file));
  EXPECT_TRUE(fs::exists(new_file));  // somebody may be writing it
}

}  // namespace
}  // namespace expertmesh
