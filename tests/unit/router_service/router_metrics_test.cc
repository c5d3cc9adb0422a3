// How many series there are: Prometheus pays for each.

#include "router_service/router_metrics.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace expertmesh::router {
namespace {

ModelConfig Model(int64_t layers, int64_t experts) {
  ModelConfig config;
  config.num_layers = layers;
  config.num_experts = experts;
  config.layers.resize(layers);
  for (auto& layer : config.layers) layer.is_moe = true;
  return config;
}

// As /metrics writes them: a line for each bucket, sum and count.
int64_t CountLines(const std::vector<prometheus::MetricFamily>& families) {
  int64_t lines = 0;
  for (const auto& family : families) {
    for (const auto& metric : family.metric) {
      lines += family.type == prometheus::MetricType::Histogram
                   ? static_cast<int64_t>(metric.histogram.bucket.size()) + 2
                   : 1;
    }
  }
  return lines;
}

// All metrics of a router with so many endpoints, pools by name.
struct Exported {
  Exported(const ModelConfig& model, ExpertDetail detail, int endpoints,
           int pools)
      : metrics("router", "avx2") {
    hot_experts = MakeEngineMetrics(model, detail, &metrics).hot_experts;
    MakeApiMetrics(&metrics);
    MakeDispatchMetrics(&metrics);
    MakePlacementMetrics(&metrics);
    MakeControllerMetrics(&metrics);
    collector = MakeExpertRowsCollector(model, detail, &metrics);
    for (int pool = 0; pool < pools; ++pool) {
      MakePoolScaleMetrics(absl::StrCat("p", pool), /*max_replicas=*/4,
                           &metrics);
      MakeResolutionCounters(absl::StrCat("p", pool), &metrics);
    }
    const TransportMetrics transport = MakeTransportMetrics(&metrics);
    for (int i = 0; i < endpoints; ++i) {
      series.push_back(std::make_unique<EndpointSeries>(
          transport, absl::StrCat("p", i % pools), absl::StrCat("h:", i)));
    }
  }

  int64_t CountSeries() const {
    // The endpoint's own, those of RouterServer itself, of TLS and of tokens.
    constexpr int64_t kOthers = 7 + 2 + 2 + 1;
    return kOthers + CountLines(metrics.Collect());
  }
  int64_t CountOf(absl::string_view name) const {
    for (const auto& family : metrics.Collect()) {
      if (family.name == name) {
        return static_cast<int64_t>(family.metric.size());
      }
    }
    return 0;
  }

  Metrics metrics;
  HotExperts* hot_experts = nullptr;
  std::shared_ptr<SlotRowsCollector> collector;
  std::vector<std::unique_ptr<EndpointSeries>> series;
};

constexpr char kOverflow[] = "expertmesh_router_layer_overflow_rows_total";
constexpr char kBalance[] = "expertmesh_router_layer_balancedness_ratio";
constexpr char kHot[] = "expertmesh_router_hot_expert_load_ratio";
constexpr char kHotSlots[] = "expertmesh_router_hot_slot_load_ratio";
constexpr char kRows[] = "expertmesh_router_expert_rows_total";

TEST(RouterMetricsTest, ALargeMeshStaysBelow2000Series) {
  const Exported large(Model(64, 128), ExpertDetail::kTopK, 32, 8);
  EXPECT_EQ(large.CountOf(kBalance), 64);
  EXPECT_LE(large.CountSeries(), 2000);
  // The number of experts does not matter, and layers beyond 64 cost nothing.
  EXPECT_EQ(Exported(Model(64, 8), ExpertDetail::kTopK, 32, 8).CountSeries(),
            large.CountSeries());
  EXPECT_LE(Exported(Model(500, 8), ExpertDetail::kTopK, 32, 8).CountSeries(),
            large.CountSeries());
}

TEST(RouterMetricsTest, DetailSaysWhatThereIsByLayerAndExpert) {
  const Exported off(Model(4, 16), ExpertDetail::kOff, 1, 1);
  for (const char* name : {kOverflow, kBalance, kHot, kHotSlots, kRows}) {
    EXPECT_EQ(off.CountOf(name), 0) << name;
  }
  const Exported topk(Model(4, 16), ExpertDetail::kTopK, 1, 1);
  EXPECT_EQ(topk.CountOf(kOverflow), 4 * 3 * 4);
  EXPECT_EQ(topk.CountOf(kBalance), 4);
  EXPECT_EQ(topk.CountOf(kHot), kHotExpertRanks);
  EXPECT_EQ(topk.CountOf(kRows), 0);
  const Exported full(Model(65, 16), ExpertDetail::kFull, 1, 1);
  EXPECT_EQ(full.CountOf(kBalance), 65);
  EXPECT_EQ(full.CountOf(kRows), 65 * 16);
}

TEST(RouterMetricsTest, HotExpertsAreShownByRankAndByName) {
  const Exported exported(Model(4, 16), ExpertDetail::kTopK, 1, 1);
  const auto collect = [&] { return exported.hot_experts->Collect(); };
  // Before there is any load.
  EXPECT_EQ(exported.CountOf(kHotSlots), 0);
  const auto idle = collect();
  for (const auto& metric : idle[0].metric) EXPECT_EQ(metric.gauge.value, 0);
  std::vector<HotExpert> loads;
  for (int64_t expert = 0; expert < 16; ++expert) {
    loads.push_back({2, expert, expert == 5 ? 4.0 : 0.5});
    loads.push_back({3, expert, expert == 9 ? 3.0 : 0.8});
  }
  exported.hot_experts->Show(&loads);
  EXPECT_EQ(exported.CountOf(kHot), kHotExpertRanks);
  ASSERT_EQ(exported.CountOf(kHotSlots), kHotExpertRanks);
  EXPECT_EQ(collect()[0].metric[0].gauge.value, 4);
  const auto first = collect()[1].metric[0];
  EXPECT_EQ(first.label[0].value, "2");
  EXPECT_EQ(first.label[1].value, "5");
  EXPECT_EQ(first.gauge.value, 4);
  EXPECT_EQ(collect()[1].metric[1].label[1].value, "9");
  // Equal ones in an order of their own, so that series do not flap.
  EXPECT_EQ(collect()[1].metric[2].label[1].value, "0");
  loads.clear();
  exported.hot_experts->Show(&loads);
  EXPECT_EQ(exported.CountOf(kHotSlots), 0);
}

TEST(RouterMetricsTest, RowsOfSlotsAreReadAtTheScrape) {
  ModelConfig model = Model(3, 2);
  model.layers[0].is_moe = false;
  const Exported full(model, ExpertDetail::kFull, 1, 1);
  full.collector->SetSource(
      [] { return std::vector<uint64_t>{0, 0, 1, 2, 3, 1ull << 40}; });
  const auto family = full.collector->Collect().at(0);
  ASSERT_EQ(family.metric.size(), 4u);
  EXPECT_EQ(family.metric[3].counter.value, 1099511627776.0);
  EXPECT_EQ(family.metric[3].label[0].value, "2");
  EXPECT_EQ(family.metric[3].label[1].value, "1");
  full.collector->SetSource(nullptr);
  EXPECT_EQ(full.collector->Collect().at(0).metric[3].counter.value, 0);
}

}  // namespace
}  // namespace expertmesh::router
