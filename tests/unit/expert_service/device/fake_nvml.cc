// A libnvidia-ml.so with two GPUs: one that tells everything, and one that, as
// a part of a GPU, tells its memory only.

#include <string_view>

namespace {

constexpr int kSuccess = 0;
constexpr int kNotSupported = 3;
constexpr int kNotFound = 6;

int whole = 0;
int part = 0;
int started = 0;  // Init calls less Shutdown calls

struct Memory {
  unsigned long long total;
  unsigned long long free;
  unsigned long long used;
};

struct Utilization {
  unsigned int gpu;
  unsigned int memory;
};

}  // namespace

extern "C" {

int nvmlInit_v2() { return ++started, kSuccess; }
int nvmlShutdown() { return --started, kSuccess; }
int FakeNvmlStarted() { return started; }

int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** device) {
  const std::string_view text = id;
  if (text != "0000:65:00.0" && text != "0000:66:00.0") return kNotFound;
  *device = text == "0000:65:00.0" ? &whole : &part;
  return kSuccess;
}

int nvmlDeviceGetMemoryInfo(void* device, Memory* memory) {
  *memory = device == &whole ? Memory{85'000, 84'000, 1'000}
                             : Memory{10'000, 8'000, 2'000};
  return kSuccess;
}

int nvmlDeviceGetUtilizationRates(void* device, Utilization* utilization) {
  if (device == &part) return kNotSupported;
  *utilization = {37, 5};
  return kSuccess;
}

int nvmlDeviceGetTemperature(void* device, int sensor, unsigned int* celsius) {
  if (device == &part || sensor != 0) return kNotSupported;
  *celsius = 41;
  return kSuccess;
}

}  // extern "C"
