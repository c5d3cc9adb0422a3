#include "services/wire/payload_pool.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace expertmesh {
namespace {

TEST(PayloadPool, BuffersAreAlignedAndSized) {
  PayloadPool pool;
  for (const size_t size : {0, 1, 63, 1024, 1025, 100'000}) {
    const PayloadRef payload = pool.Acquire(size);
    EXPECT_EQ(payload.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(payload.data()) % 64, 0u);
    std::memset(payload.data(), 0xab, size);
  }
  EXPECT_FALSE(PayloadRef());
  EXPECT_EQ(PayloadRef().size(), 0u);
}

TEST(PayloadPool, ABufferReturnsWithItsLastReference) {
  PayloadPool pool;
  PayloadRef first = pool.Acquire(5000);
  std::byte* data = first.data();
  PayloadRef second = first;
  first = PayloadRef();
  PayloadRef other = pool.Acquire(5000);
  EXPECT_NE(other.data(), data);  // `second` still holds it
  second = PayloadRef();
  EXPECT_EQ(pool.Acquire(8000).data(), data);  // same power of two
}

TEST(PayloadPool, AReleasedReferenceIsAdoptedAgain) {
  PayloadPool pool;
  PayloadRef payload = pool.Acquire(10);
  std::byte* data = payload.data();
  void* released = payload.Release();
  EXPECT_FALSE(payload);
  EXPECT_NE(pool.Acquire(10).data(), data);
  EXPECT_EQ(PayloadRef::Adopt(released).data(), data);
}

TEST(PayloadPool, KeepsNoMoreThanItsBound) {
  PayloadPool pool(8192);
  { const PayloadRef payloads[] = {pool.Acquire(4096), pool.Acquire(4096)}; }
  EXPECT_EQ(pool.idle_bytes(), 8192u);
  {
    const PayloadRef payloads[] = {pool.Acquire(4096), pool.Acquire(4096),
                                   pool.Acquire(4096), pool.Acquire(16384)};
    EXPECT_EQ(pool.idle_bytes(), 0u);
  }
  EXPECT_EQ(pool.idle_bytes(), 8192u);
}

TEST(PayloadPool, BuffersOutliveTheirPool) {
  PayloadRef payload;
  {
    PayloadPool pool;
    payload = pool.Acquire(100);
    pool.Acquire(100'000);
  }
  std::memset(payload.data(), 1, payload.size());
}

TEST(PayloadPool, ThreadsShareBuffers) {
  PayloadPool pool;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 2000; ++i) {
        PayloadRef payload = pool.Acquire(64 + i % 3000);
        std::memset(payload.data(), t, payload.size());
        const PayloadRef copy = payload;
        payload = PayloadRef();
        ASSERT_EQ(copy.data()[copy.size() - 1], static_cast<std::byte>(t));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace expertmesh
