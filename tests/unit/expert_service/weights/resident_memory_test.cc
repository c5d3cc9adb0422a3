// A service that holds 2 of 8 experts reads those two and nothing of the other
// six, and holds their weights once.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "expert_service/weights/expert_loader.h"
#include "tests/support/peak_memory.h"
#include "tests/support/safetensors_writer.h"

namespace expertmesh::expert {
namespace {

using expertmesh::testing::MakeCheckpoint;
using expertmesh::testing::PeakMemory;
using expertmesh::testing::TempFolder;
using expertmesh::testing::TinyConfig;

constexpr int64_t kHidden = 256;
constexpr int64_t kIntermediate = 512;
constexpr int64_t kMatrixBytes = kHidden * kIntermediate * 4;
constexpr int64_t kExpertBytes = 3 * kMatrixBytes;  // of one layer
// On a fault the kernel maps cached neighbours too, within an aligned block.
constexpr int64_t kFaultAroundBytes = 64 << 10;

constexpr int64_t kScrapBytes = 2 * kFaultAroundBytes;

const std::vector<int64_t> kLoaded = {2, 5};

// A whole page range [first, end) inside a tensor.
struct Pages {
  std::byte* first;
  size_t bytes;
};

// The pages that lie wholly inside a tensor.
Pages PagesInside(const TensorView& tensor) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(tensor.data);
  const uintptr_t first = (start + page - 1) / page * page;
  const uintptr_t end = (start + tensor.size_bytes()) / page * page;
  return {reinterpret_cast<std::byte*>(first), end - first};
}

// Those that no fault at the tensor's edges brings along, and that no
// fingerprint samples.
Pages PagesAmid(const TensorView& tensor) {
  const Pages pages = PagesInside(tensor);
  return {pages.first + kFaultAroundBytes, pages.bytes - 2 * kFaultAroundBytes};
}

// Resident bytes of the mapping of `path` in this process.
int64_t ResidentBytes(const std::string& path) {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool inside = false;
  int64_t total = 0;
  while (std::getline(smaps, line)) {
    const std::vector<std::string> words =
        absl::StrSplit(line, ' ', absl::SkipWhitespace());
    if (words.empty()) continue;
    if (!absl::EndsWith(words[0], ":")) inside = absl::EndsWith(line, path);
    int64_t kilobytes = 0;
    if (inside && words[0] == "Rss:" &&
        absl::SimpleAtoi(words[1], &kilobytes)) {
      total += kilobytes << 10;
    }
  }
  return total;
}

// Writes the checkpoint's pages to disk and drops them from the page cache.
void DropFromPageCache(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  EXPECT_EQ(fsync(fd), 0);
  EXPECT_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  close(fd);
}

// Pages of a range that the page cache holds.
int64_t CachedPages(const Pages& pages) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> cached(pages.bytes / page);
  EXPECT_EQ(mincore(pages.first, pages.bytes, cached.data()), 0);
  return std::count_if(cached.begin(), cached.end(),
                       [](unsigned char flags) { return (flags & 1) != 0; });
}

class ResidentMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    nlohmann::json config = TinyConfig("mixtral");
    config["hidden_size"] = kHidden;
    config["head_dim"] = 64;
    config["intermediate_size"] = kIntermediate;
    MakeCheckpoint(config).Write(folder_.path());
    path_ = folder_.File("model.safetensors");
  }

  void Open() {
    auto checkpoint = Checkpoint::Open(folder_.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
  }

  // The matrices of the experts that are loaded, or of those that are not.
  std::vector<TensorView> ExpertTensors(bool loaded) const {
    std::vector<TensorView> tensors;
    for (int64_t layer = 0; layer < 2; ++layer) {
      for (int64_t expert = 0; expert < 8; ++expert) {
        const bool is_loaded =
            std::find(kLoaded.begin(), kLoaded.end(), expert) != kLoaded.end();
        if (is_loaded != loaded) continue;
        const ExpertTensorNames names =
            checkpoint_->family().ExpertNames(layer, expert);
        for (const auto& [name, n, k] :
             {std::tuple(names.gate_proj, kIntermediate, kHidden),
              std::tuple(names.up_proj, kIntermediate, kHidden),
              std::tuple(names.down_proj, kHidden, kIntermediate)}) {
          tensors.push_back(*checkpoint_->Tensor(name, {n, k}));
        }
      }
    }
    return tensors;
  }

  TempFolder folder_;
  std::string path_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

// Any access to a byte of the other six experts' pages would end this process.
TEST_F(ResidentMemoryTest, NeverTouchesTheOtherExperts) {
  ASSERT_NO_FATAL_FAILURE(Open());
  for (const TensorView& tensor : ExpertTensors(/*loaded=*/false)) {
    const Pages pages = PagesInside(tensor);
    ASSERT_GT(pages.bytes, tensor.size_bytes() / 2);
    ASSERT_EQ(mprotect(pages.first, pages.bytes, PROT_NONE), 0);
  }
  const auto weights = LoadExperts(*checkpoint_, {.experts = kLoaded});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ((*weights)->slots().size(), 4u);
}

// What the kernel read from disk: the two experts, and of the other six nothing
// but what it maps around a fault at a tensor's edge.
TEST_F(ResidentMemoryTest, ReadsOnlyItsExpertsFromDisk) {
  // Before it is mapped: mapped pages stay.
  DropFromPageCache(path_);
  ASSERT_NO_FATAL_FAILURE(Open());
  const std::vector<TensorView> others = ExpertTensors(/*loaded=*/false);
  for (const TensorView& tensor : others) {
    if (CachedPages(PagesAmid(tensor)) != 0) {
      GTEST_SKIP() << "this file system keeps its files in memory";
    }
  }
  const auto weights = LoadExperts(*checkpoint_, {.experts = kLoaded});
  ASSERT_TRUE(weights.ok()) << weights.status();

  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  for (const TensorView& tensor : others) {
    EXPECT_EQ(CachedPages(PagesAmid(tensor)), 0);
  }
  for (const TensorView& tensor : ExpertTensors(/*loaded=*/true)) {
    const Pages pages = PagesInside(tensor);
    EXPECT_EQ(CachedPages(pages), static_cast<int64_t>(pages.bytes) / page);
  }
}

// Opening leaves nothing of the mapping resident, and neither does a slot once
// it is packed: weights are in memory once.
TEST_F(ResidentMemoryTest, HoldsWeightsOnce) {
  ASSERT_NO_FATAL_FAILURE(Open());
  EXPECT_LE(ResidentBytes(path_), kScrapBytes);
  // The measure does see what is touched.
  const TensorView tensor = ExpertTensors(/*loaded=*/true)[0];
  const std::string copy(reinterpret_cast<const char*>(tensor.data),
                         tensor.size_bytes());
  ASSERT_GE(ResidentBytes(path_), kMatrixBytes);
  checkpoint_->Release(tensor);

  std::vector<int64_t> resident;
  const auto weights = LoadExperts(
      *checkpoint_, {.experts = kLoaded, .progress = [&](int64_t, int64_t) {
                       resident.push_back(ResidentBytes(path_));
                     }});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(static_cast<int64_t>((*weights)->size_bytes()), 4 * kExpertBytes);
  ASSERT_EQ(resident.size(), 4u);
  for (const int64_t bytes : resident) EXPECT_LE(bytes, kScrapBytes);
}

// A matrix in few bits is a fraction of its tensor, which therefore goes while
// it is read: only so much of it is there beside the weights.
TEST(PeakMemoryTest, OfPackingIsLittleAboveThePackedBytes) {
  constexpr int64_t kSlackBytes = int64_t{5} << 20;
  nlohmann::json config = TinyConfig("mixtral");
  config["num_hidden_layers"] = 1;
  config["num_local_experts"] = 2;
  config["hidden_size"] = 768;
  config["intermediate_size"] = 4096;
  const TempFolder folder;
  MakeCheckpoint(config).Write(folder.path());
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  constexpr int64_t kTensorBytes = 768 * 4096 * 4;
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    const PeakMemory peak;
    const auto weights =
        LoadExperts(**checkpoint, {.experts = {0, 1}, .format = format});
    ASSERT_TRUE(weights.ok()) << weights.status();
    if (!peak.RiseBytes()) GTEST_SKIP() << "no peaks are told here";
    const auto packed = static_cast<int64_t>((*weights)->size_bytes());
    const int64_t bound = packed + packed * 15 / 100 + kSlackBytes;
    EXPECT_LE(*peak.RiseBytes(), bound) << WeightFormatName(format);
    // Otherwise a tensor that stays would go unnoticed, and so would the peak.
    ASSERT_GT(packed + kTensorBytes, bound);
    EXPECT_GE(*peak.RiseBytes(), packed * 9 / 10) << WeightFormatName(format);
  }
}

}  // namespace
}  // namespace expertmesh::expert
