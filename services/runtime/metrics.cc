#include "services/runtime/metrics.h"

#include <chrono>
#include <exception>
#include <future>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "services/core/mutex.h"
#include "services/core/status_macros.h"
#include "services/core/version.h"
#include "services/runtime/process_metrics.h"

namespace expertmesh {

const std::vector<double>& StepSecondsBuckets() {
  static const auto* buckets = new std::vector<double>{
      1e-5, 2.5e-5, 5e-5,   1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3,
      5e-3, 1e-2,   2.5e-2, 5e-2, 0.1,    0.25, 0.5,  1.0};
  return *buckets;
}

const std::vector<double>& RequestSecondsBuckets() {
  static const auto* buckets = new std::vector<double>{
      1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1,  0.25,
      0.5,  1.0,    2.5,  5.0,  10.0,   30.0, 60.0, 120.0};
  return *buckets;
}

const std::vector<double>& CountBuckets() {
  static const auto* buckets = new std::vector<double>{
      1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
  return *buckets;
}

// All of them as one, so that those added later are asked too.
class Metrics::Collectors final : public prometheus::Collectable {
 public:
  void Add(std::shared_ptr<prometheus::Collectable> collector) {
    MutexLock lock(&mutex_);
    collectors_.push_back(std::move(collector));
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<prometheus::MetricFamily> families;
    MutexLock lock(&mutex_);
    for (const auto& collector : collectors_) {
      for (prometheus::MetricFamily& family : collector->Collect()) {
        families.push_back(std::move(family));
      }
    }
    return families;
  }

 private:
  mutable Mutex mutex_;
  std::vector<std::shared_ptr<prometheus::Collectable>> collectors_
      ABSL_GUARDED_BY(mutex_);
};

Metrics::Metrics(absl::string_view service, absl::string_view isa)
    : service_(service),
      registry_(std::make_shared<prometheus::Registry>()),
      collectors_(std::make_shared<Collectors>()),
      build_info_(GaugeFamily("expertmesh_build_info",
                              "What runs here, as labels; always 1.")) {
  SetIsa(isa);
  collectors_->Add(registry_);
  collectors_->Add(std::make_shared<ProcessCollector>());
}

void Metrics::SetIsa(absl::string_view isa) {
  if (build_ != nullptr) build_info_.Remove(build_);
  build_ = &build_info_.Add({{"version", std::string(Version())},
                             {"build_type", std::string(BuildType())},
                             {"isa", std::string(isa)},
                             {"service", service_}});
  build_->Set(1);
}

void Metrics::AddCollector(std::shared_ptr<prometheus::Collectable> collector) {
  collectors_->Add(std::move(collector));
}

std::vector<prometheus::MetricFamily> Metrics::Collect() const {
  return collectors_->Collect();
}

prometheus::Counter& Metrics::Counter(const std::string& name,
                                      const std::string& help,
                                      const Labels& labels) {
  return prometheus::BuildCounter()
      .Name(name)
      .Help(help)
      .Register(*registry_)
      .Add(labels);
}

prometheus::Gauge& Metrics::Gauge(const std::string& name,
                                  const std::string& help,
                                  const Labels& labels) {
  return prometheus::BuildGauge()
      .Name(name)
      .Help(help)
      .Register(*registry_)
      .Add(labels);
}

prometheus::Histogram& Metrics::Histogram(const std::string& name,
                                          const std::string& help,
                                          const std::vector<double>& buckets,
                                          const Labels& labels) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Register(*registry_)
      .Add(labels, buckets);
}

prometheus::Family<prometheus::Counter>& Metrics::CounterFamily(
    const std::string& name, const std::string& help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(*registry_);
}

prometheus::Family<prometheus::Gauge>& Metrics::GaugeFamily(
    const std::string& name, const std::string& help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(*registry_);
}

prometheus::Family<prometheus::Histogram>& Metrics::HistogramFamily(
    const std::string& name, const std::string& help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(
      *registry_);
}

std::vector<prometheus::Counter*> Metrics::Counters(
    const std::string& name, const std::string& help, const std::string& label,
    absl::Span<const std::string> values) {
  std::vector<prometheus::Counter*> counters;
  for (const std::string& value : values) {
    counters.push_back(&Counter(name, help, {{label, value}}));
  }
  return counters;
}

std::vector<prometheus::Gauge*> Metrics::Gauges(
    const std::string& name, const std::string& help, const std::string& label,
    absl::Span<const std::string> values) {
  std::vector<prometheus::Gauge*> gauges;
  for (const std::string& value : values) {
    gauges.push_back(&Gauge(name, help, {{label, value}}));
  }
  return gauges;
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    absl::string_view listen, const Metrics& metrics) {
  ASSIGN_OR_RETURN(HostPort address, ResolveListenAddress(listen));
  std::unique_ptr<prometheus::Exposer> exposer;
  try {
    exposer = std::make_unique<prometheus::Exposer>(address.ToString());
  } catch (const std::exception&) {  // CivetWeb gives no reason
    return ListenError(address);
  }
  exposer->RegisterCollectable(metrics.collectors_);
  address.port = exposer->GetListeningPorts().front();
  return std::unique_ptr<MetricsServer>(
      new MetricsServer(std::move(address), std::move(exposer)));
}

// CivetWeb notices that it should stop only after its next connection, or two
// seconds; a service that ends gives it that connection.
MetricsServer::~MetricsServer() {
  const std::future<void> stopped =
      std::async(std::launch::async, [this] { exposer_.reset(); });
  while (stopped.wait_for(std::chrono::milliseconds(10)) !=
         std::future_status::ready) {
    TouchListener(address_);
  }
}

}  // namespace expertmesh
