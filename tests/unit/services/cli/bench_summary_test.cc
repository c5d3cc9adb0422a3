#include "services/cli/bench_summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace expertmesh {
namespace {

using ::testing::HasSubstr;

constexpr double kTolerance = 1e-9;

absl::Duration Ms(double milliseconds) {
  return absl::Milliseconds(milliseconds);
}

RequestRecord Completed(absl::Duration begun,
                        std::vector<absl::Duration> tokens) {
  RequestRecord record;
  record.begun = begun;
  record.ended = tokens.back() + Ms(1);
  record.asked_tokens = static_cast<uint32_t>(tokens.size());
  record.tokens = std::move(tokens);
  record.last.mutable_usage()->set_prompt_tokens(10);
  record.last.mutable_routing()->set_gate_mass_kept(1);
  return record;
}

RequestRecord Failed(absl::Status status) {
  RequestRecord record;
  record.ended = Ms(900);
  record.tokens = {Ms(1)};
  record.status = std::move(status);
  return record;
}

TEST(Quantiles, LieOnTheLineBetweenValues) {
  std::vector<double> values(101);
  std::iota(values.rbegin(), values.rend(), 0.0);  // 100 down to 0
  const Quantiles q = Quantiles::Of(values);
  EXPECT_EQ(q.count, 101);
  EXPECT_DOUBLE_EQ(q.mean, 50);
  EXPECT_DOUBLE_EQ(q.p50, 50);
  EXPECT_DOUBLE_EQ(q.p90, 90);
  EXPECT_DOUBLE_EQ(q.p95, 95);
  EXPECT_DOUBLE_EQ(q.p99, 99);
  EXPECT_DOUBLE_EQ(q.max, 100);
  EXPECT_DOUBLE_EQ(Quantiles::Of({1, 2}).p50, 1.5);
  EXPECT_DOUBLE_EQ(Quantiles::Of({1, 2}).p90, 1.9);
}

TEST(Quantiles, OfOneAndOfNone) {
  const Quantiles one = Quantiles::Of({3});
  EXPECT_DOUBLE_EQ(one.p50, 3);
  EXPECT_DOUBLE_EQ(one.p99, 3);
  EXPECT_EQ(Quantiles::Of({}).count, 0);
}

TEST(Summarize, LatenciesCountFromTheBeginning) {
  LoadResult result;
  result.records = {Completed(Ms(100), {Ms(150), Ms(160), Ms(190)})};
  result.elapsed = Ms(200);
  const BenchSummary summary = Summarize(result);
  EXPECT_NEAR(summary.first_token.mean, 0.050, kTolerance);
  EXPECT_EQ(summary.inter_token.count, 2);
  EXPECT_NEAR(summary.inter_token.mean, 0.020, kTolerance);
  EXPECT_NEAR(summary.inter_token.max, 0.030, kTolerance);
  EXPECT_NEAR(summary.per_output_token.mean, 0.020, kTolerance);
  EXPECT_NEAR(summary.end_to_end.mean, 0.091, kTolerance);
  EXPECT_EQ(summary.output_tokens, 3);
  EXPECT_NEAR(summary.PerSecond(summary.output_tokens), 15, kTolerance);
}

TEST(Summarize, ASingleTokenHasNoTimeBetween) {
  LoadResult result;
  result.records = {Completed(Ms(0), {Ms(5)})};
  const BenchSummary summary = Summarize(result);
  EXPECT_EQ(summary.first_token.count, 1);
  EXPECT_EQ(summary.inter_token.count, 0);
  EXPECT_EQ(summary.per_output_token.count, 0);
}

TEST(Summarize, FailedRequestsCountByCodeAndNowhereElse) {
  LoadResult result;
  result.records = {Completed(Ms(0), {Ms(5), Ms(6)}),
                    Failed(absl::UnavailableError("gone")),
                    Failed(absl::UnavailableError("gone again")),
                    Failed(absl::ResourceExhaustedError("full"))};
  result.unfinished = 2;
  const BenchSummary summary = Summarize(result);
  EXPECT_EQ(summary.completed, 1);
  EXPECT_EQ(summary.failed, 3);
  EXPECT_EQ(summary.requests(), 6);
  EXPECT_EQ(summary.failures.at("UNAVAILABLE").count, 2);
  EXPECT_EQ(summary.failures.at("UNAVAILABLE").message, "gone");
  EXPECT_EQ(summary.failures.at("RESOURCE_EXHAUSTED").count, 1);
  EXPECT_EQ(summary.output_tokens, 2);
  EXPECT_EQ(summary.prompt_tokens, 10);
  EXPECT_EQ(summary.end_to_end.count, 1);
}

TEST(Summarize, GateMassIsWeighedByAssignments) {
  LoadResult result;
  result.records = {Completed(Ms(0), {Ms(1)}), Completed(Ms(0), {Ms(1)})};
  v1::RoutingAccount& first = *result.records[0].last.mutable_routing();
  first.set_primary(20);
  first.set_waited(10);
  v1::RoutingAccount& second = *result.records[1].last.mutable_routing();
  second.set_primary(4);
  second.set_replica(3);
  second.set_rerouted(2);
  second.set_dropped(1);
  second.set_gate_mass_kept(0.6);
  const BenchSummary summary = Summarize(result);
  EXPECT_EQ(summary.routing.primary, 24);
  EXPECT_EQ(summary.routing.replica, 3);
  EXPECT_EQ(summary.routing.waited, 10);
  EXPECT_EQ(summary.routing.rerouted, 2);
  EXPECT_EQ(summary.routing.dropped, 1);
  EXPECT_NEAR(summary.routing.gate_mass_kept, 0.9, kTolerance);
}

TEST(Summarize, AnswersThatAreTooShortAreCounted) {
  LoadResult result;
  result.records = {Completed(Ms(0), {Ms(1)}), Completed(Ms(0), {Ms(1)})};
  result.records[1].asked_tokens = 2;
  EXPECT_EQ(Summarize(result).cut_short, 1);
}

TEST(ClientWarning, OnlyWhereTheClientWasBehind) {
  BenchSummary summary;
  summary.client_cpu_share = 0.3;
  summary.client_delay = Quantiles::Of({0.001, 0.002});
  EXPECT_EQ(ClientWarning(summary), std::nullopt);
  summary.client_cpu_share = 0.95;
  EXPECT_THAT(*ClientWarning(summary), HasSubstr("95%"));
  summary.client_cpu_share = 0.3;
  summary.client_delay = Quantiles::Of({0.050});
  EXPECT_THAT(*ClientWarning(summary), HasSubstr("50 ms"));
}

}  // namespace
}  // namespace expertmesh
