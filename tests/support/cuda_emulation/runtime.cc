#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <utility>
#include <vector>

#include "tests/support/cuda_emulation/control.h"
#include "tests/support/cuda_emulation/cuda_runtime.h"

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};

struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};

struct CUstream_st {
  std::deque<std::function<void()>> work;
  std::unique_ptr<CUgraph_st> recording;  // where work goes instead

  void Add(std::function<void()> next) {
    if (recording != nullptr) {
      recording->work.push_back(std::move(next));
    } else {
      work.push_back(std::move(next));
    }
  }
};

struct CUevent_st {
  CUstream_st* stream = nullptr;  // of the last record
  int64_t recorded = 0;
  int64_t reached = 0;  // of `recorded`
  std::chrono::steady_clock::time_point time;
};

namespace expertmesh::cuda_emulation {
namespace {

constexpr std::align_val_t kAlignment{256};
constexpr unsigned char kPoison = 0xff;

class Device {
 public:
  static Device& Get() {
    static Device device;
    return device;
  }

  // Whether this call fails as planned.
  cudaError_t Count() {
    ++calls;
    const bool fails = fault.call > 0 && (fault.lasting ? calls >= fault.call
                                                        : calls == fault.call);
    return fails ? fault.error : cudaSuccess;
  }

  CUstream_st& StreamOf(cudaStream_t stream) {
    return stream == nullptr ? default_stream : *stream;
  }

  static void Step(CUstream_st& stream) {
    const std::function<void()> next = std::move(stream.work.front());
    stream.work.pop_front();
    next();
  }
  static void Drain(CUstream_st& stream) {
    while (!stream.work.empty()) Step(stream);
  }
  void DrainAll() {
    Drain(default_stream);
    for (CUstream_st* stream : streams) Drain(*stream);
  }
  // What lies before the record of an event, which its stream still has.
  static void DrainTo(CUevent_st& event, int64_t record) {
    while (event.reached < record) Step(*event.stream);
  }

  void* Allocate(size_t bytes, std::map<std::byte*, size_t>& blocks) {
    auto* data = static_cast<std::byte*>(
        ::operator new(bytes, kAlignment, std::nothrow));
    if (data == nullptr) return nullptr;
    std::memset(data, kPoison, bytes);
    blocks[data] = bytes;
    return data;
  }
  // False for what Allocate did not give.
  static bool Free(void* data, std::map<std::byte*, size_t>& blocks) {
    if (blocks.erase(static_cast<std::byte*>(data)) == 0) return false;
    ::operator delete(data, kAlignment);
    return true;
  }

  bool IsIn(const void* data, const std::map<std::byte*, size_t>& blocks) {
    auto* const p = static_cast<std::byte*>(const_cast<void*>(data));
    auto next = blocks.upper_bound(p);
    if (next == blocks.begin()) return false;
    --next;
    return p < next->first + next->second;
  }

  // Operations of streams run while it is held, so calls of one thread nest.
  std::recursive_mutex mutex;
  int device_count = 1;
  bool has_cublas = true;
  size_t memory = size_t{1} << 30;
  size_t used = 0;
  Fault fault;
  int64_t calls = 0;
  CUstream_st default_stream;
  std::set<CUstream_st*> streams;
  std::map<std::byte*, size_t> device_blocks;
  std::map<std::byte*, size_t> pinned_blocks;
};

// No bytes may come from nowhere.
void Move(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memmove(to, from, bytes);
}

using Lock = std::lock_guard<std::recursive_mutex>;

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

// Runs `call` unless it is to fail.
template <typename Call>
cudaError_t Counted(const Call& call) {
  Device& device = Device::Get();
  const Lock lock(device.mutex);
  cudaError_t error = device.Count();
  if (error == cudaSuccess) error = call(device);
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t Enqueue(cudaStream_t stream, std::function<void()> work) {
  return Counted([&](Device& device) {
    device.StreamOf(stream).Add(std::move(work));
    return cudaSuccess;
  });
}

}  // namespace

void PlanFault(const Fault& fault) {
  Device& device = Device::Get();
  const Lock lock(device.mutex);
  device.fault = fault;
  device.calls = 0;
}

void ClearFault() { PlanFault({}); }

int64_t CallsCounted() {
  const Lock lock(Device::Get().mutex);
  return Device::Get().calls;
}

void SetDeviceCount(int count) {
  const Lock lock(Device::Get().mutex);
  Device::Get().device_count = count;
}

void SetDeviceMemory(size_t bytes) {
  const Lock lock(Device::Get().mutex);
  Device::Get().memory = bytes;
}

void SetCublas(bool is_there) {
  const Lock lock(Device::Get().mutex);
  Device::Get().has_cublas = is_there;
}

bool HasCublas() {
  const Lock lock(Device::Get().mutex);
  return Device::Get().has_cublas;
}

bool IsRecording(cudaStream_t stream) {
  const Lock lock(Device::Get().mutex);
  return Device::Get().StreamOf(stream).recording != nullptr;
}

size_t DeviceBytesInUse() {
  const Lock lock(Device::Get().mutex);
  return Device::Get().used;
}

cudaError_t Launch(dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, std::function<void()> kernel) {
  return Enqueue(stream, [=, kernel = std::move(kernel)] {
    RunBlocks({grid.x, grid.y, grid.z}, {block.x, block.y, block.z},
              shared_bytes, kernel);
  });
}

}  // namespace expertmesh::cuda_emulation

using expertmesh::cuda_emulation::Counted;
using expertmesh::cuda_emulation::Device;
using expertmesh::cuda_emulation::Enqueue;
using expertmesh::cuda_emulation::Lock;
using expertmesh::cuda_emulation::Move;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorUnknown:
      return "cudaErrorUnknown";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  return std::exchange(expertmesh::cuda_emulation::last_error, cudaSuccess);
}

cudaError_t cudaPeekAtLastError() {
  return expertmesh::cuda_emulation::last_error;
}

const char* cudaGetErrorString(cudaError_t error) {
  return cudaGetErrorName(error);
}

cudaError_t cudaGetDeviceCount(int* count) {
  const Lock lock(Device::Get().mutex);
  *count = Device::Get().device_count;
  return *count == 0 ? cudaErrorNoDevice : cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = expertmesh::cuda_emulation::current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return Counted([&](Device& d) {
    if (device < 0 || device >= d.device_count) return cudaErrorInvalidDevice;
    expertmesh::cuda_emulation::current_device = device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return Counted([&](Device& d) {
    if (device < 0 || device >= d.device_count) return cudaErrorInvalidDevice;
    *properties = {.name = "emulated",
                   .totalGlobalMem = d.memory,
                   .major = 9,
                   .minor = 0,
                   .multiProcessorCount = 4};
    return cudaSuccess;
  });
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  return Counted([&](Device& device) {
    *total_bytes = device.memory;
    *free_bytes = device.memory - std::min(device.memory, device.used);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return Counted([](Device& device) {
    device.DrainAll();
    return cudaSuccess;
  });
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  return Counted([&](Device& device) {
    *data = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (device.used + bytes > device.memory) return cudaErrorMemoryAllocation;
    *data = device.Allocate(bytes, device.device_blocks);
    if (*data == nullptr) return cudaErrorMemoryAllocation;
    device.used += bytes;
    return cudaSuccess;
  });
}

cudaError_t cudaFree(void* data) {
  Device& device = Device::Get();
  const Lock lock(device.mutex);
  if (data == nullptr) return cudaSuccess;
  device.DrainAll();
  const auto block = device.device_blocks.find(static_cast<std::byte*>(data));
  if (block == device.device_blocks.end()) return cudaErrorInvalidValue;
  device.used -= block->second;
  Device::Free(data, device.device_blocks);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  return Counted([&](Device& device) {
    *data = device.Allocate(bytes, device.pinned_blocks);
    return *data != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
  });
}

cudaError_t cudaFreeHost(void* data) {
  Device& device = Device::Get();
  const Lock lock(device.mutex);
  if (data == nullptr) return cudaSuccess;
  device.DrainAll();
  return Device::Free(data, device.pinned_blocks) ? cudaSuccess
                                                  : cudaErrorInvalidValue;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes,
                       cudaMemcpyKind) {
  return Counted([&](Device& device) {
    device.DrainAll();
    Move(to, from, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes,
                            cudaMemcpyKind, cudaStream_t stream) {
  return Counted([&](Device& device) {
    CUstream_st& queue = device.StreamOf(stream);
    const auto waits = [&](const void* data) {
      return device.IsIn(data, device.device_blocks) ||
             device.IsIn(data, device.pinned_blocks);
    };
    const bool is_done_at_once = !waits(to) || !waits(from);
    if (is_done_at_once && queue.recording != nullptr) {
      return cudaErrorStreamCaptureUnsupported;
    }
    queue.Add([=] { Move(to, from, bytes); });
    if (is_done_at_once) Device::Drain(queue);
    return cudaSuccess;
  });
}

cudaError_t cudaMemset(void* data, int value, size_t bytes) {
  return Counted([&](Device& device) {
    device.DrainAll();
    std::memset(data, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes,
                            cudaStream_t stream) {
  return Enqueue(stream, [=] { std::memset(data, value, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return Counted([&](Device& device) {
    *stream = new CUstream_st;
    device.streams.insert(*stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Device& device = Device::Get();
  const Lock lock(device.mutex);
  Device::Drain(*stream);
  device.streams.erase(stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return Counted([&](Device& device) {
    CUstream_st& queue = device.StreamOf(stream);
    if (queue.recording != nullptr) return cudaErrorStreamCaptureUnsupported;
    Device::Drain(queue);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return Counted([&](Device& device) {
    CUstream_st& queue = device.StreamOf(stream);
    if (!queue.work.empty()) Device::Step(queue);
    return queue.work.empty() ? cudaSuccess : cudaErrorNotReady;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                unsigned) {
  return Enqueue(stream, [event, record = event->recorded] {
    Device::DrainTo(*event, record);
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return Counted([&](Device&) {
    *event = new CUevent_st;
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Device& device = Device::Get();
  const Lock lock(device.mutex);
  Device::DrainTo(*event, event->recorded);
  device.DrainAll();  // others may wait for it
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return Counted([&](Device& device) {
    CUstream_st& queue = device.StreamOf(stream);
    if (queue.recording != nullptr) return cudaErrorStreamCaptureUnsupported;
    event->stream = &queue;
    queue.work.push_back([event, record = ++event->recorded] {
      event->reached = record;
      event->time = std::chrono::steady_clock::now();
    });
    return cudaSuccess;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return Counted([&](Device&) {
    Device::DrainTo(*event, event->recorded);
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return Counted([&](Device&) {
    if (event->reached < event->recorded) Device::Step(*event->stream);
    return event->reached < event->recorded ? cudaErrorNotReady : cudaSuccess;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start,
                                 cudaEvent_t end) {
  *milliseconds =
      std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return Counted([&](Device& device) {
    device.StreamOf(stream).recording = std::make_unique<CUgraph_st>();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return Counted([&](Device& device) {
    *graph = device.StreamOf(stream).recording.release();
    return *graph != nullptr ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  return Counted([&](Device&) {
    *executable = new CUgraphExec_st{graph->work};
    return cudaSuccess;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Lock lock(Device::Get().mutex);
  Device::Get().DrainAll();
  delete executable;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return Counted([&](Device& device) {
    for (const auto& work : executable->work) {
      device.StreamOf(stream).Add(work);
    }
    return cudaSuccess;
  });
}
