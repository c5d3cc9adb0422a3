#include "services/shared_memory/byte_ring.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <thread>
#include <vector>

namespace expertmesh {
namespace {

constexpr size_t kCapacity = 64;

class ByteRingTest : public testing::Test {
 protected:
  RingMemory Memory() { return {&words_, bytes_.data(), kCapacity}; }

  RingWords words_ = {};
  std::array<std::byte, kCapacity> bytes_ = {};
};

std::vector<std::byte> Bytes(size_t first, size_t count) {
  std::vector<std::byte> bytes;
  for (size_t i = first; i < first + count; ++i) {
    bytes.push_back(static_cast<std::byte>(i * 7));
  }
  return bytes;
}

TEST_F(ByteRingTest, NothingIsReadBeforeItIsPublished) {
  RingWriter writer(Memory());
  RingReader reader(Memory());
  const auto bytes = Bytes(0, 10);
  EXPECT_EQ(writer.Write(bytes.data(), 10), 10u);
  EXPECT_EQ(reader.Available(), 0u);
  writer.Publish();
  EXPECT_EQ(reader.Available(), 10u);
  std::vector<std::byte> out(10);
  EXPECT_EQ(reader.Read(out.data(), 4), 4u);
  EXPECT_EQ(reader.Read(out.data() + 4, 100), 6u);
  EXPECT_EQ(out, bytes);
}

TEST_F(ByteRingTest, TakesNoMoreThanItHolds) {
  RingWriter writer(Memory());
  RingReader reader(Memory());
  const auto bytes = Bytes(0, 100);
  EXPECT_EQ(writer.Write(bytes.data(), 100), kCapacity);
  EXPECT_EQ(writer.Room(), 0u);
  EXPECT_EQ(writer.Write(bytes.data(), 1), 0u);
  writer.Publish();
  std::byte out;
  EXPECT_EQ(reader.Read(&out, 1), 1u);
  EXPECT_EQ(writer.Room(), 1u);
}

TEST_F(ByteRingTest, EveryLengthAtEveryPlace) {
  RingWriter writer(Memory());
  RingReader reader(Memory());
  size_t sent = 0;
  for (size_t round = 0; round < 3; ++round) {
    for (size_t count = 1; count <= kCapacity; ++count) {
      const auto bytes = Bytes(sent, count);
      ASSERT_EQ(writer.Write(bytes.data(), count), count);
      writer.Publish();
      std::vector<std::byte> out(count);
      ASSERT_EQ(reader.Read(out.data(), count), count);
      ASSERT_EQ(out, bytes);
      sent += count;
    }
  }
}

TEST_F(ByteRingTest, ImpossiblePositionsOfThePeerGiveNothing) {
  RingWriter writer(Memory());
  RingReader reader(Memory());
  const auto bytes = Bytes(0, 8);
  std::byte out;
  // More written than the ring holds; less than was read.
  for (const uint64_t written : {uint64_t{kCapacity + 1}, ~uint64_t{0}}) {
    words_.written.store(written);
    EXPECT_TRUE(reader.IsBroken());
    EXPECT_EQ(reader.Available(), 0u);
    EXPECT_EQ(reader.Read(&out, 1), 0u);
  }
  words_.read.store(1);  // nothing was written yet
  EXPECT_EQ(writer.Room(), 0u);
  EXPECT_EQ(writer.Write(bytes.data(), 8), 0u);
}

TEST_F(ByteRingTest, AStreamBetweenTwoThreads) {
  constexpr size_t kTotal = 100'000;
  std::thread sender([&] {
    RingWriter writer(Memory());
    for (size_t at = 0; at < kTotal;) {
      const auto bytes = Bytes(at, std::min(kTotal - at, at % 50 + 1));
      const size_t written = writer.Write(bytes.data(), bytes.size());
      writer.Publish();
      at += written;
      if (written == 0) std::this_thread::yield();
    }
  });
  RingReader reader(Memory());
  size_t wrong = 0;
  for (size_t at = 0; at < kTotal;) {
    std::array<std::byte, 40> out;
    const size_t count = reader.Read(out.data(), at % out.size() + 1);
    for (size_t i = 0; i < count; ++i) {
      wrong += out[i] != static_cast<std::byte>((at + i) * 7);
    }
    at += count;
    if (count == 0) std::this_thread::yield();
  }
  sender.join();
  EXPECT_EQ(wrong, 0u);
}

}  // namespace
}  // namespace expertmesh
