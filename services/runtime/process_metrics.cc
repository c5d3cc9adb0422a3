#include "services/runtime/process_metrics.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>
#include <prometheus/metric_type.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <system_error>

namespace expertmesh {
namespace {

prometheus::MetricFamily Family(const char* name, const char* help,
                                prometheus::MetricType type, double value) {
  prometheus::ClientMetric metric;
  if (type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  return {name, help, type, {metric}};
}

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) +
           static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double OpenFiles() {
  std::error_code error;
  std::filesystem::directory_iterator files("/proc/self/fd", error);
  if (error) return 0;
  // Less the one that lists them.
  return static_cast<double>(std::distance(begin(files), end(files)) - 1);
}

// Unix time of the machine's start, to which process times are relative.
double BootSeconds() {
  std::ifstream stat("/proc/stat");
  std::string key;
  double value = 0;
  while (stat >> key) {
    if (key == "btime" && stat >> value) return value;
    std::getline(stat, key);
  }
  return 0;
}

double StartSeconds() {
  std::ifstream file("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  // The second field is the program's name and may hold spaces; counting starts
  // after its closing bracket, with field 3. The start time is field 22.
  const size_t bracket = text.rfind(')');
  if (bracket == std::string::npos) return 0;
  std::istringstream fields(text.substr(bracket + 1));
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  double ticks = 0;
  fields >> ticks;
  return BootSeconds() + ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace

std::vector<prometheus::MetricFamily> ProcessCollector::Collect() const {
  double virtual_pages = 0;
  double resident_pages = 0;
  std::ifstream("/proc/self/statm") >> virtual_pages >> resident_pages;
  const double page_bytes = static_cast<double>(sysconf(_SC_PAGESIZE));
  static const double start_seconds = StartSeconds();
  using prometheus::MetricType;
  return {
      Family("process_cpu_seconds_total", "CPU time used, in seconds.",
             MetricType::Counter, CpuSeconds()),
      Family("process_resident_memory_bytes", "Resident memory, in bytes.",
             MetricType::Gauge, resident_pages * page_bytes),
      Family("process_virtual_memory_bytes", "Virtual memory, in bytes.",
             MetricType::Gauge, virtual_pages * page_bytes),
      Family("process_open_fds", "Open file descriptors.", MetricType::Gauge,
             OpenFiles()),
      Family("process_start_time_seconds",
             "Start time since the Unix epoch, in seconds.", MetricType::Gauge,
             start_seconds),
  };
}

}  // namespace expertmesh
