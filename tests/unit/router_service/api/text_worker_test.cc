#include "router_service/api/text_worker.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <thread>
#include <vector>

namespace expertmesh::router {
namespace {

constexpr TextWorker::Options kOptions = {.max_inline_size = 10,
                                          .max_queue = 2};

TEST(TextWorkerTest, ShortTextsRunWhereTheyArrive) {
  TextWorker worker(kOptions);
  std::thread::id thread;
  EXPECT_TRUE(
      worker.Run(10, [&] { thread = std::this_thread::get_id(); }).ok());
  EXPECT_EQ(thread, std::this_thread::get_id());
}

TEST(TextWorkerTest, LongTextsWaitInABoundedQueue) {
  TextWorker worker(kOptions);
  std::promise<void> started;
  std::promise<void> release;
  ASSERT_TRUE(worker
                  .Run(11,
                       [&] {
                         started.set_value();
                         release.get_future().wait();
                       })
                  .ok());
  started.get_future().wait();
  std::vector<int> order;
  std::promise<void> done;
  EXPECT_TRUE(worker.Run(11, [&] { order.push_back(1); }).ok());
  EXPECT_TRUE(worker
                  .Run(11,
                       [&] {
                         order.push_back(2);
                         done.set_value();
                       })
                  .ok());
  const auto resource = std::make_shared<int>();
  const absl::Status full = worker.Run(11, [resource] {});
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(resource.use_count(), 1);  // a refused job is gone
  bool ran = false;
  EXPECT_TRUE(worker.Run(1, [&] { ran = true; }).ok());
  EXPECT_TRUE(ran);
  release.set_value();
  done.get_future().wait();
  EXPECT_EQ(order, std::vector<int>({1, 2}));
}

TEST(TextWorkerTest, EndsWithAnEmptyQueue) {
  std::atomic<int> runs = 0;
  {
    TextWorker worker(kOptions);
    for (int i = 0; i < 2; ++i) {
      ASSERT_TRUE(worker.Run(11, [&] { ++runs; }).ok());
    }
  }
  EXPECT_EQ(runs, 2);
}

}  // namespace
}  // namespace expertmesh::router
