#pragma once

// Prometheus metrics of one service and the HTTP endpoint that serves them.
//
// Names: expertmesh_<service>_<what>[_<unit>][_total]; seconds and bytes.
// Labels come from small closed sets, and every series is made at start, so
// that a rate never begins with a gap; but for those of peers, which come and
// go with them.

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/runtime/address.h"

namespace expertmesh {

using prometheus::Labels;

// Bucket bounds in seconds: 10 µs to 1 s, for one batch or one step.
const std::vector<double>& StepSecondsBuckets();
// 1 ms to 2 min, for a whole request or the time to its first token.
const std::vector<double>& RequestSecondsBuckets();
// 1 to 16384 by powers of two: rows, tokens.
const std::vector<double>& CountBuckets();

// The registry of one process, with expertmesh_build_info and process_* in it.
// Thread-safe. The references it gives out live as long as it does; adding the
// same name and labels again gives the same series. Names must be valid and
// keep their type: prometheus-cpp throws otherwise, which is a bug of ours.
class Metrics {
 public:
  // `service`: "router", "expert"; `isa` as linalg's IsaName().
  Metrics(absl::string_view service, absl::string_view isa);

  // Asked at each scrape from then on, like the registry.
  void AddCollector(std::shared_ptr<prometheus::Collectable> collector);

  // As a scrape has it, but for what the endpoint says of itself.
  std::vector<prometheus::MetricFamily> Collect() const;

  // For a service that finds at load that it must use another one.
  void SetIsa(absl::string_view isa);

  prometheus::Counter& Counter(const std::string& name, const std::string& help,
                               const Labels& labels = {});
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help,
                           const Labels& labels = {});
  prometheus::Histogram& Histogram(const std::string& name,
                                   const std::string& help,
                                   const std::vector<double>& buckets,
                                   const Labels& labels = {});

  // For series that come and go: whoever adds one removes it. A family's name
  // is its own, as above.
  prometheus::Family<prometheus::Counter>& CounterFamily(
      const std::string& name, const std::string& help);
  prometheus::Family<prometheus::Gauge>& GaugeFamily(const std::string& name,
                                                     const std::string& help);
  prometheus::Family<prometheus::Histogram>& HistogramFamily(
      const std::string& name, const std::string& help);

  // One series per value of one label, in the order of `values`.
  std::vector<prometheus::Counter*> Counters(
      const std::string& name, const std::string& help,
      const std::string& label, absl::Span<const std::string> values);
  std::vector<prometheus::Gauge*> Gauges(const std::string& name,
                                         const std::string& help,
                                         const std::string& label,
                                         absl::Span<const std::string> values);

 private:
  friend class MetricsServer;

  class Collectors;

  const std::string service_;
  std::shared_ptr<prometheus::Registry> registry_;
  std::shared_ptr<Collectors> collectors_;  // the registry is one
  prometheus::Family<prometheus::Gauge>& build_info_;
  prometheus::Gauge* build_ = nullptr;  // of build_info_
};

// Serves /metrics over HTTP on threads of its own, until destroyed.
class MetricsServer {
 public:
  // `listen`: HOST:PORT, port 0 for any. Collects from `metrics` as long as
  // that lives. Errors: INVALID_ARGUMENT for a malformed address, UNAVAILABLE
  // when it cannot be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(
      absl::string_view listen, const Metrics& metrics);

  ~MetricsServer();

  // With the port in use: "127.0.0.1:41002".
  std::string address() const { return address_.ToString(); }
  // "http://127.0.0.1:41002/metrics".
  std::string url() const { return "http://" + address() + "/metrics"; }

 private:
  MetricsServer(HostPort address, std::unique_ptr<prometheus::Exposer> exposer)
      : address_(std::move(address)), exposer_(std::move(exposer)) {}

  HostPort address_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace expertmesh
