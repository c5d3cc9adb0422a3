#include "services/shared_memory/shared_memory.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace expertmesh {
namespace {

using ::testing::HasSubstr;

constexpr size_t kSize = 8192;

std::string WithPart(const std::string& offer, size_t part,
                     const std::string& text) {
  std::vector<std::string> parts = absl::StrSplit(offer, ':');
  parts[part] = text;
  return absl::StrJoin(parts, ":");
}

void ExpectRefused(const std::string& offer, const std::string& why) {
  const auto opened = SharedMemory::Open(offer, kSize);
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kUnavailable) << offer;
  EXPECT_THAT(opened.status().message(), HasSubstr(why)) << offer;
}

TEST(SharedMemory, BothSidesSeeTheSame) {
  auto created = SharedMemory::Create(kSize);
  ASSERT_TRUE(created.ok()) << created.status();
  auto opened = SharedMemory::Open(created->Offer(), kSize);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_NE(created->data(), opened->data());
  created->data()[0] = std::byte{1};
  opened->data()[kSize - 1] = std::byte{2};
  EXPECT_EQ(opened->data()[0], std::byte{1});
  EXPECT_EQ(created->data()[kSize - 1], std::byte{2});
}

TEST(SharedMemory, AnotherProcessOpensIt) {
  auto created = SharedMemory::Create(kSize);
  ASSERT_TRUE(created.ok());
  const std::string offer = created->Offer();
  const pid_t child = fork();
  if (child == 0) {
    const auto opened = SharedMemory::Open(offer, kSize);
    if (opened.ok()) opened->data()[5] = std::byte{77};
    _exit(opened.ok() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(created->data()[5], std::byte{77});
}

TEST(SharedMemory, AnOfferThatWasWithdrawnIsWorthNothing) {
  auto created = SharedMemory::Create(kSize);
  ASSERT_TRUE(created.ok());
  const std::string offer = created->Offer();
  created->Withdraw();
  EXPECT_FALSE(SharedMemory::Open(offer, kSize).ok());
  created->data()[0] = std::byte{1};  // still ours
}

TEST(SharedMemory, ItsSizeIsFixed) {
  auto created = SharedMemory::Create(kSize);
  ASSERT_TRUE(created.ok());
  const std::vector<std::string> parts = absl::StrSplit(created->Offer(), ':');
  const int file = std::stoi(parts[3]);
  EXPECT_NE(ftruncate(file, 0), 0);
  EXPECT_NE(ftruncate(file, 1 << 20), 0);
}

TEST(SharedMemory, FurtherSealsAreWelcome) {
  const auto created = SharedMemory::Create(kSize);
  ASSERT_TRUE(created.ok());
  const std::vector<std::string> parts = absl::StrSplit(created->Offer(), ':');
  struct stat status;
  ASSERT_EQ(fstat(std::stoi(parts[3]), &status), 0);
  const int sealed = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(sealed, status.st_size), 0);
  ASSERT_EQ(fchmod(sealed, 0600), 0);
  ASSERT_EQ(pwrite(sealed, created->data() - 4096, 4096, 0), 4096);
  ASSERT_EQ(fcntl(sealed, F_ADD_SEALS,
                  F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | 0x0020),
            0);  // and not executable
  EXPECT_TRUE(SharedMemory::Open(
                  WithPart(created->Offer(), 3, absl::StrCat(sealed)), kSize)
                  .ok());
  close(sealed);
}

TEST(SharedMemory, OffersThatAreNotWhatTheySay) {
  const auto created = SharedMemory::Create(kSize);
  ASSERT_TRUE(created.ok());
  const std::string offer = created->Offer();
  for (const char* text : {"", ":", ":::::", "no offer", "1:2:3:4:5:6:7"}) {
    EXPECT_FALSE(SharedMemory::Open(text, kSize).ok()) << text;
  }
  ExpectRefused(WithPart(offer, 0, "2"), "version");
  ExpectRefused(WithPart(offer, 1, "elsewhere/4026531836"), "another host");
  ExpectRefused(WithPart(offer, 1, ""), "another host");
  ExpectRefused(WithPart(offer, 2, "-1"), "version");
  ExpectRefused(WithPart(offer, 2, "1/fd/../.."), "version");
  ExpectRefused(WithPart(offer, 2, "2147483647"), "No such file");
  ExpectRefused(WithPart(offer, 3, "1000000"), "No such file");
  ExpectRefused(WithPart(offer, 4, "0"), "not the memory that was offered");
  EXPECT_FALSE(SharedMemory::Open(offer, 2 * kSize).ok());
}

// An offer is text from the network: it must not make us open just anything.
TEST(SharedMemory, OtherFilesOfAProcessAreLeftAlone) {
  const auto created = SharedMemory::Create(kSize);
  ASSERT_TRUE(created.ok());
  const std::string offer = created->Offer();
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  ExpectRefused(WithPart(offer, 3, absl::StrCat(pipes[0])), "not memory");
  // Of the right size, but it could be cut short while we use it.
  const int growing = memfd_create("growing", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  const std::vector<std::string> parts = absl::StrSplit(offer, ':');
  struct stat status;
  ASSERT_EQ(fstat(std::stoi(parts[3]), &status), 0);
  ASSERT_EQ(ftruncate(growing, status.st_size), 0);
  ExpectRefused(WithPart(offer, 3, absl::StrCat(growing)), "size is fixed");
  close(growing);
  close(pipes[0]);
  close(pipes[1]);
}

}  // namespace
}  // namespace expertmesh
