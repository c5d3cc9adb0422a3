#include "services/runtime/metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

namespace expertmesh {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// A plain HTTP GET; returns the whole response.
std::string Get(const std::string& address, const std::string& path) {
  const auto target = ParseHostPort(address);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(target->port));
  inet_pton(AF_INET, target->host.c_str(), &to.sin_addr);
  std::string response;
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0) {
    const std::string request = "GET " + path +
                                " HTTP/1.1\r\nHost: test\r\n"
                                "Connection: close\r\n\r\n";
    EXPECT_EQ(write(fd, request.data(), request.size()),
              static_cast<ssize_t>(request.size()));
    char chunk[4096];
    for (ssize_t n; (n = read(fd, chunk, sizeof(chunk))) > 0;) {
      response.append(chunk, static_cast<size_t>(n));
    }
  }
  close(fd);
  return response;
}

TEST(Metrics, ServesEverySeriesFromTheStart) {
  Metrics metrics("expert", "avx2");
  metrics.Counters("expertmesh_test_batches_total", "Batches.", "code",
                   {"ok", "internal"});
  metrics.Histogram("expertmesh_test_seconds", "Time.", StepSecondsBuckets());
  const auto server = MetricsServer::Start("127.0.0.1:0", metrics);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ((*server)->url(), "http://" + (*server)->address() + "/metrics");

  const std::string page = Get((*server)->address(), "/metrics");
  EXPECT_THAT(page, StartsWith("HTTP/1.1 200"));
  for (const char* line :
       {"expertmesh_test_batches_total{code=\"ok\"} 0\n",
        "expertmesh_test_batches_total{code=\"internal\"} 0\n",
        "expertmesh_test_seconds_bucket{le=\"+Inf\"} 0\n", "service=\"expert\"",
        "isa=\"avx2\"", "version=\"0.1.0\"", "process_resident_memory_bytes ",
        "process_start_time_seconds 1"}) {
    EXPECT_THAT(page, HasSubstr(line));
  }
}

TEST(Metrics, AnotherInstructionSetTakesThePlaceOfTheFirst) {
  Metrics metrics("expert", "amx");
  metrics.SetIsa("avx2");
  const auto server = MetricsServer::Start("127.0.0.1:0", metrics);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string page = Get((*server)->address(), "/metrics");
  EXPECT_THAT(page, HasSubstr("isa=\"avx2\""));
  EXPECT_THAT(page, Not(HasSubstr("isa=\"amx\"")));
}

TEST(Metrics, CollectorsAreAskedAtEachScrape) {
  class Counting final : public prometheus::Collectable {
   public:
    std::vector<prometheus::MetricFamily> Collect() const override {
      prometheus::ClientMetric metric;
      metric.gauge.value = ++scrapes_;
      return {{"expertmesh_test_scrapes",
               "Scrapes.",
               prometheus::MetricType::Gauge,
               {metric}}};
    }

   private:
    mutable std::atomic<int> scrapes_ = 0;
  };
  Metrics metrics("expert", "avx2");
  metrics.AddCollector(std::make_shared<Counting>());
  const auto server = MetricsServer::Start("127.0.0.1:0", metrics);
  ASSERT_TRUE(server.ok()) << server.status();
  for (const char* line :
       {"expertmesh_test_scrapes 1\n", "expertmesh_test_scrapes 2\n"}) {
    const std::string page = Get((*server)->address(), "/metrics");
    EXPECT_THAT(page, HasSubstr(line));
    EXPECT_THAT(page, HasSubstr("process_resident_memory_bytes "));
  }
}

TEST(Metrics, TheSameNameAndLabelsAreTheSameSeries) {
  Metrics metrics("router", "portable");
  prometheus::Counter& a =
      metrics.Counter("expertmesh_test_total", "Test.", {{"x", "1"}});
  prometheus::Counter& b =
      metrics.Counter("expertmesh_test_total", "Test.", {{"x", "1"}});
  prometheus::Counter& c =
      metrics.Counter("expertmesh_test_total", "Test.", {{"x", "2"}});
  EXPECT_EQ(&a, &b);
  EXPECT_NE(&a, &c);
}

TEST(Metrics, BucketBoundsAscend) {
  for (const auto* buckets :
       {&StepSecondsBuckets(), &RequestSecondsBuckets(), &CountBuckets()}) {
    EXPECT_EQ(std::adjacent_find(buckets->begin(), buckets->end(),
                                 std::greater_equal<double>()),
              buckets->end());
  }
}

TEST(MetricsServer, ATakenPortIsAnError) {
  Metrics metrics("expert", "avx2");
  const auto first = MetricsServer::Start("127.0.0.1:0", metrics);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = MetricsServer::Start((*first)->address(), metrics);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(
      second.status().message(),
      "cannot listen on " + (*first)->address() + ": Address already in use");
  EXPECT_FALSE(MetricsServer::Start("nonsense", metrics).ok());
}

}  // namespace
}  // namespace expertmesh
