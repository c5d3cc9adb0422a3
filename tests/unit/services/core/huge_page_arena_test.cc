#include "services/core/huge_page_arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <thread>
#include <vector>

namespace expertmesh {
namespace {

constexpr size_t kBlock = HugePageArena::kBlockBytes;
using Piece = std::shared_ptr<std::byte>;

bool IsAll(const Piece& piece, size_t bytes, int value) {
  return std::all_of(piece.get(), piece.get() + bytes, [&](std::byte b) {
    return b == static_cast<std::byte>(value);
  });
}

TEST(HugePageArenaTest, PiecesAreAlignedAndDoNotOverlap) {
  HugePageArena arena;
  std::vector<Piece> pieces;
  for (int i = 0; i < 50; ++i) {
    const size_t bytes = 7777 * i;
    pieces.push_back(arena.Allocate(bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(pieces.back().get()) % 64, 0u);
    std::memset(pieces.back().get(), i + 1, bytes);
  }
  for (int i = 0; i < 50; ++i) {
    EXPECT_TRUE(IsAll(pieces[i], 7777 * i, i + 1)) << i;
  }
  EXPECT_EQ(arena.size_bytes(), kBlock);
}

TEST(HugePageArenaTest, WhatWasFreedIsUsedAgain) {
  HugePageArena arena;
  const Piece keeps_the_block = arena.Allocate(64);
  Piece piece = arena.Allocate(4096);
  std::byte* const place = piece.get();
  piece.reset();
  piece = arena.Allocate(4096);
  EXPECT_EQ(piece.get(), place);
}

TEST(HugePageArenaTest, NeighboursAreJoinedInAnyOrder) {
  const int orders[][3] = {{0, 1, 2}, {2, 1, 0}, {0, 2, 1}, {1, 0, 2}};
  for (const auto& order : orders) {
    HugePageArena arena;
    std::vector<Piece> pieces;
    for (int i = 0; i < 3; ++i) pieces.push_back(arena.Allocate(kBlock / 4));
    const Piece rest = arena.Allocate(kBlock / 4);
    for (const int i : order) pieces[i].reset();
    const Piece joined = arena.Allocate(kBlock / 4 * 3);
    EXPECT_EQ(arena.size_bytes(), kBlock);
  }
}

TEST(HugePageArenaTest, EmptyBlocksGoBack) {
  HugePageArena arena;
  Piece small = arena.Allocate(100);
  Piece full = arena.Allocate(kBlock);
  Piece large = arena.Allocate(kBlock + 1);
  EXPECT_GT(arena.size_bytes(), 3 * kBlock);
  EXPECT_LT(arena.size_bytes(), 3 * kBlock + (size_t{4} << 20));
  large.reset();
  EXPECT_EQ(arena.size_bytes(), 2 * kBlock);
  small.reset();
  full.reset();
  EXPECT_EQ(arena.size_bytes(), 0u);
}

TEST(HugePageArenaTest, MoreThanThereIsThrows) {
  HugePageArena arena;
  EXPECT_THROW(arena.Allocate(size_t{1} << 50), std::bad_alloc);
  EXPECT_EQ(arena.size_bytes(), 0u);
}

TEST(HugePageArenaTest, ThreadsShareIt) {
  HugePageArena arena;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&arena, t] {
      std::minstd_rand random(t + 1);
      std::vector<Piece> kept;
      for (int i = 0; i < 300; ++i) {
        const size_t bytes = 1 + random() % 50'000;
        Piece piece = arena.Allocate(bytes);
        std::memset(piece.get(), t, bytes);
        ASSERT_TRUE(IsAll(piece, bytes, t));
        if (random() % 2 == 0) kept.push_back(std::move(piece));
        if (kept.size() > 20) kept.erase(kept.begin() + random() % 20);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(arena.size_bytes(), 0u);
}

}  // namespace
}  // namespace expertmesh
