#include "services/shared_memory/doorbell.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace expertmesh {
namespace {

TEST(Doorbell, RungBeforeTheWaitDoesNotBlock) {
  Doorbell::Word word{0};
  Doorbell bell(&word);
  bell.Wait();  // not armed
  bell.Arm();
  bell.Ring();
  bell.Wait();
}

// A ring that got lost would hang this.
TEST(Doorbell, NoWakeUpIsLost) {
  Doorbell::Word ping_word{0}, pong_word{0};
  Doorbell ping(&ping_word), pong(&pong_word);
  std::atomic<int> asked{0}, answered{0};
  const auto await = [](Doorbell& bell, const std::atomic<int>& value,
                        int wanted) {
    while (true) {
      bell.Arm();
      if (value.load() >= wanted) return;
      bell.Wait();
    }
  };
  constexpr int kRounds = 20'000;
  std::thread peer([&] {
    for (int i = 1; i <= kRounds; ++i) {
      await(ping, asked, i);
      answered.store(i);
      pong.Ring();
    }
  });
  for (int i = 1; i <= kRounds; ++i) {
    asked.store(i);
    ping.Ring();
    await(pong, answered, i);
  }
  peer.join();
  EXPECT_EQ(answered.load(), kRounds);
}

TEST(Doorbell, NobodyWaitsForEver) {
  Doorbell::Word word{0};
  Doorbell bell(&word);
  bell.Arm();
  bell.Wait();
}

TEST(Doorbell, RingAllWakesWhereAnotherThreadDisarmed) {
  Doorbell::Word word{0};
  Doorbell bell(&word);
  bell.Arm();
  std::atomic<bool> is_woken{false};
  std::thread sleeper([&] {
    bell.Wait();
    is_woken.store(true);
  });
  bell.Disarm();
  while (!is_woken.load()) bell.RingAll();
  sleeper.join();
}

}  // namespace
}  // namespace expertmesh
