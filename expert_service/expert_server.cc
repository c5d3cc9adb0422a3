#include "expert_service/expert_server.h"

#include <unistd.h>

#include <algorithm>
#include <new>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "expert_service/device/device_metrics.h"
#include "expert_service/device/nvml.h"
#include "expert_service/weights/expert_loader.h"
#include "services/checkpoint/memory_plan.h"
#include "services/checkpoint/slot_list.h"
#include "services/core/clock.h"
#include "services/core/load_progress.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/core/version.h"
#include "services/linalg/gemm.h"
#include "services/linalg/self_check.h"
#include "services/runtime/observability_options.h"
#include "services/wire/batch_codec.h"

namespace expertmesh::expert {
namespace {

// Of protos/expertmesh/expert/v1; routers refuse another one.
constexpr uint32_t kWireVersion = 1;

// Without watchers, this much silence says that nothing more comes. A router
// that watches is told of the drain at once; should that message be late, it
// has two of its intervals, within reason, between two batches.
constexpr absl::Duration kQuiet = absl::Milliseconds(250);
constexpr absl::Duration kMaxQuiet = absl::Seconds(2);
constexpr absl::Duration kQuietPoll = absl::Milliseconds(10);

uint64_t RandomInstanceId() {
  std::random_device random;
  const auto half = [&] { return uint64_t{random()}; };
  return half() << 32 | half() | 1;  // never 0, which is none
}

// Of the device's own metrics there are none where its library is not there.
void AddDeviceMetrics(const CudaDevice& device, Metrics& metrics) {
  auto nvml = Nvml::Open(device.pci_bus_id);
  if (nvml.ok()) {
    metrics.AddCollector(std::make_shared<DeviceCollector>(*std::move(nvml)));
  } else {
    Log(LogLevel::kInfo, "no metrics of the device",
        {{"why", nvml.status().message()}});
  }
}

}  // namespace

ExpertServer::ExpertServer(const ExpertConfig& config, const Device& device,
                           std::function<void()> on_fault)
    : config_(config),
      device_(device),
      on_fault_(std::move(on_fault)),
      registry_("expert", IsaName()),
      metrics_(registry_),
      pool_(config.threads > 0 ? config.threads : AvailableCpus()),
      queue_({.capacity_rows = config.queue_rows,
              .await_briefly =
                  [this](absl::FunctionRef<bool()> has_work) {
                    links_.AwaitBriefly(has_work);
                  }},
             metrics_.queue) {}

absl::StatusOr<std::unique_ptr<ExpertServer>> ExpertServer::Start(
    const ExpertConfig& config, std::function<void()> on_fault,
    absl::FunctionRef<absl::StatusOr<CudaDevice>(int)> find) {
  // Before the model is read, which may take long.
  ASSIGN_OR_RETURN(const Device device,
                   ChooseDevice(ExpertDeviceWish(config), find));
  auto server = std::unique_ptr<ExpertServer>(
      new ExpertServer(config, device, std::move(on_fault)));
  RETURN_IF_ERROR(server->Load());
  RETURN_IF_ERROR(server->Serve());
  return server;
}

ExpertServer::~ExpertServer() {
  if (slot_rows_ != nullptr) slot_rows_->SetSource(nullptr);
  // The executor ends after the server, and may yet lose its device.
  MutexLock lock(&health_mutex_);
  listening_ = nullptr;
}

absl::Status ExpertServer::LoadTls() {
  if (!config_.mesh_tls.any()) return absl::OkStatus();
  prometheus::Gauge& expiry = registry_.Gauge(
      "expertmesh_expert_certificate_expiry_timestamp_seconds",
      "When the certificate in use ends to be valid, in Unix time.",
      {{"use", "mesh"}});
  ASSIGN_OR_RETURN(
      tls_, TlsIdentity::Load(config_.mesh_tls, [&expiry](absl::Time time) {
        expiry.Set(static_cast<double>(absl::ToUnixSeconds(time)));
      }));
  return absl::OkStatus();
}

absl::Status ExpertServer::Load() {
  // What is wrong with flags shows before what takes long.
  RETURN_IF_ERROR(LoadTls());
  RETURN_IF_ERROR(OpenTraceFile());
  RETURN_IF_ERROR(OpenSlots());
  const ModelConfig& model = slots_->checkpoint().config();
  weights_ = std::make_unique<LiveWeights>(std::make_shared<ExpertWeights>(
      model.num_layers, model.num_experts, std::vector<ExpertSlot>(),
      std::vector<PackedExpert>()));
  RETURN_IF_ERROR(OpenDevice());
  ExpertContents::Options options;
  options.model = &model;
  options.load = [this](ExpertSlot slot, const std::stop_token& stop) {
    return LoadSlot(slot, stop);
  };
  options.slot_bytes = static_cast<size_t>(ExpertBytes(model, format()));
  options.memory_budget_bytes = config_.memory_budget_bytes;
  if (cuda_ != nullptr) {
    options.slot_bytes = static_cast<size_t>(cuda_->expert_bytes());
    const auto fits = static_cast<uint64_t>(cuda_->budget_bytes());
    if (config_.memory_budget_bytes == 0 ||
        config_.memory_budget_bytes > fits) {
      options.memory_budget_bytes = fits;
      options.budget_flag = "--device-memory-fraction";
    }
  }
  contents_ = std::make_unique<ExpertContents>(options, metrics_.contents,
                                               weights_.get());
  RETURN_IF_ERROR(UseIsaThatPasses([this] { return CheckKernels(); }));
  registry_.SetIsa(IsaName());
  RETURN_IF_ERROR(LoadFirst());
  load_ = std::make_unique<SlotLoad>(model.num_layers, model.num_experts);
  endpoint_ = DescribeEndpoint();
  return absl::OkStatus();
}

absl::Status ExpertServer::OpenDevice() {
  if (!device_.cuda.has_value()) return absl::OkStatus();
  const ModelConfig& model = slots_->checkpoint().config();
  CudaBackendOptions options;
  options.device = device_.cuda->index;
  options.memory_fraction = config_.device_memory_fraction;
  options.hidden_size = model.hidden_size;
  options.intermediate_size = model.expert_intermediate_size;
  options.format = format();
  options.max_rows = config_.max_batch_rows;
  options.max_groups = model.num_experts;
  options.is_fast = IsFast(ExpertNumerics(config_), device_, format());
  options.metrics = AddCudaMetrics(registry_);
  ASSIGN_OR_RETURN(cuda_, OpenCudaBackend(options));
  return absl::OkStatus();
}

absl::Status ExpertServer::CheckKernels() const {
  const int64_t hidden = slots_->checkpoint().config().hidden_size;
  const int64_t intermediate =
      slots_->checkpoint().config().expert_intermediate_size;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    RETURN_IF_ERROR(CheckRowsAgree(format(), intermediate, hidden, dtype));
    RETURN_IF_ERROR(CheckRowsAgree(format(), hidden, intermediate, dtype));
  }
  return absl::OkStatus();
}

absl::Status ExpertServer::OpenSlots() {
  SlotSource::Options options;
  options.model = config_.model;
  options.format = ExpertWeightFormat(config_);
  options.pack_cache = config_.pack_cache;
  if (!config_.weights_from.empty()) {
    WeightSource::Options& pull = options.peers.emplace();
    pull.peers.addresses = WeightPeerAddresses(config_);
    pull.peers.tls = tls_.get();
    pull.peers.rate_limit_bytes_per_s = config_.weights_rate_limit_bytes_per_s;
    pull.cache = config_.weights_cache;
    pull.patience = absl::Seconds(config_.weights_wait_seconds);
  }
  ASSIGN_OR_RETURN(slots_, SlotSource::Open(options));
  WeightServiceImpl::Options lend;
  lend.has = [this](absl::string_view tensor, uint64_t end) {
    return slots_->IsHere(tensor, end);
  };
  ASSIGN_OR_RETURN(weight_service_,
                   WeightServiceImpl::Create(slots_->checkpoint(), lend));
  return absl::OkStatus();
}

absl::StatusOr<ExpertWeights::Expert> ExpertServer::LoadSlot(
    ExpertSlot slot, const std::stop_token& stop) {
  if (cuda_ == nullptr) return AsLoaded(slots_->Packed(slot, stop));
  auto expert = LoadToDevice(slot, stop);
  if (absl::IsInternal(expert.status()) && executor_ != nullptr) {
    LoseDevice(expert.status());
  }
  return expert;
}

absl::StatusOr<ExpertWeights::Expert> ExpertServer::LoadToDevice(
    ExpertSlot slot, const std::stop_token& stop) {
  if (cuda_->takes_tensors()) {
    return slots_->FromTensors(
        slot, stop, [this](const ExpertTensors& t) { return cuda_->Load(t); });
  }
  ASSIGN_OR_RETURN(const PackedExpert packed, slots_->Packed(slot, stop));
  return cuda_->Load(packed);
}

absl::Status ExpertServer::LoadFirst() {
  const ModelConfig& model = slots_->checkpoint().config();
  const auto slots = ParseSlotList(config_.experts, model);
  if (!slots.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--experts: ", slots.status().message()));
  }
  LogDevice(device_);
  const Numerics numerics = ExpertNumerics(config_);
  if (numerics == Numerics::kFast && !IsFast(numerics, device_, format())) {
    Log(LogLevel::kInfo, "--numerics=fast makes no difference",
        {{"why", "only bf16 experts on a CUDA device have a faster way"}});
  }
  const absl::Duration started = Clock::Real()->Now();
  const auto slot_bytes = static_cast<int64_t>(contents_->slot_bytes());
  LoadProgress progress(static_cast<int64_t>(slots->size()) * slot_bytes);
  const auto on_slot = [&](int64_t, int64_t) {
    const auto report = progress.Add(slot_bytes);
    if (report) LogProgress("packing experts", *report);
  };
  RETURN_IF_ERROR(contents_->Load(*slots, /*epoch=*/0,
                                  {.pool = &pool_, .progress = on_slot}));
  expert_list_ = FormatSlotList(*slots, model);
  Log(LogLevel::kInfo, "experts loaded",
      {{"model", slots_->checkpoint().name()},
       {"experts", expert_list_},
       {"slots", slots->size()},
       {"bytes", weights_->Get()->size_bytes()},
       {"pulled_bytes", slots_->pulled_bytes()},
       {"seconds", absl::ToDoubleSeconds(Clock::Real()->Now() - started)}});
  if (const PackCache* const cache = slots_->pack_cache()) {
    Log(LogLevel::kInfo, "pack cache used",
        {{"folder", config_.pack_cache},
         {"hits", cache->hits()},
         {"misses", cache->misses()},
         {"stored", cache->stored()}});
  }
  return absl::OkStatus();
}

v1::EndpointState ExpertServer::DescribeEndpoint() const {
  const ModelConfig& model = slots_->checkpoint().config();
  v1::EndpointState endpoint;
  endpoint.set_model_type(model.model_type);
  endpoint.set_hidden_size(static_cast<uint32_t>(model.hidden_size));
  endpoint.set_num_layers(static_cast<uint32_t>(model.num_layers));
  endpoint.set_num_experts(static_cast<uint32_t>(model.num_experts));
  endpoint.set_checkpoint_fingerprint(slots_->checkpoint().fingerprint());
  endpoint.set_expert_dtype(std::string(WeightFormatName(format())));
  endpoint.set_numerics_id(
      NumericsId(device_, format(), ExpertNumerics(config_)));
  endpoint.set_device(DeviceKind(device_));
  endpoint.set_version(std::string(Version()));
  endpoint.set_wire_version(kWireVersion);
  endpoint.set_adds_rows(true);
  endpoint.set_int8_rows(true);
  endpoint.set_instance_id(RandomInstanceId());
  return endpoint;
}

absl::Status ExpertServer::StartExecutor() {
  const ModelConfig& model = slots_->checkpoint().config();
  const int64_t hidden = model.hidden_size;
  const int64_t intermediate = model.expert_intermediate_size;
  // In the widest type: x and y of the executor, h and, for rows of int8, y of
  // the kernel; and the kernel's own x, in f32 or in codes. A device has its
  // own workspace, and x and y for each batch that may be started.
  const int64_t codes = IsQuantized(format()) ? hidden + intermediate : 0;
  const int64_t row_bytes =
      cuda_ != nullptr
          ? 4 * 2 * cuda_->ffn().max_started() * hidden
          : 4 * (3 * hidden + intermediate) + (codes > 0 ? codes : 4 * hidden);
  const auto workspace_bytes =
      static_cast<uint64_t>(config_.max_batch_rows * row_bytes);
  const auto memory_bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                            static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const auto too_large = [&] {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max-batch-rows: ", config_.max_batch_rows,
        " rows of this model need a workspace of ", workspace_bytes,
        " bytes, and the machine has ", memory_bytes));
  };
  if (workspace_bytes > memory_bytes) return too_large();
  ExpertExecutor::Options options;
  options.hidden_size = hidden;
  options.max_rows = config_.max_batch_rows;
  options.on_fault = [this](const absl::Status& fault) { LoseDevice(fault); };
  try {
    if (cuda_ == nullptr) {
      cpu_ffn_ =
          MakeGroupedFfnCpu({hidden, intermediate, config_.max_batch_rows,
                             model.activation, IsQuantized(format())},
                            &pool_);
    }
    GroupedFfn* const ffn = cuda_ != nullptr ? &cuda_->ffn() : cpu_ffn_.get();
    executor_ = std::make_unique<ExpertExecutor>(
        options, metrics_.executor,
        ExpertExecutor::Parts{&queue_, weights_.get(), ffn, &replies_,
                              load_.get(), &pool_});
  } catch (const std::bad_alloc&) {  // a limit below the machine's memory
    return too_large();
  }
  return absl::OkStatus();
}

void ExpertServer::LoseDevice(const absl::Status& fault) {
  {
    MutexLock lock(&health_mutex_);
    if (!fault_.ok()) return;
    fault_ = fault;
  }
  Log(LogLevel::kError, "device lost", {{"why", fault.message()}});
  SetHealth(false);
  on_fault_();
}

absl::Status ExpertServer::fault() const {
  MutexLock lock(&health_mutex_);
  return fault_;
}

absl::Status ExpertServer::OpenTraceFile() {
  if (config_.trace_file.empty()) return absl::OkStatus();
  TraceFile::Options options;
  options.path = config_.trace_file;
  options.service_name = "expertmesh-expert";
  options.on_dropped = [this](int64_t spans) {
    metrics_.spans_dropped->Increment(static_cast<double>(spans));
  };
  ASSIGN_OR_RETURN(trace_file_, TraceFile::Open(options));
  return absl::OkStatus();
}

void ExpertServer::CountSlots() {
  if (*ParseExpertDetail(config_.metrics_expert_detail) !=
      ExpertDetail::kFull) {
    return;
  }
  slot_rows_ = MakeSlotRowsCollector(slots_->checkpoint().config());
  slot_rows_->SetSource([this] { return load_->Totals(); });
  registry_.AddCollector(slot_rows_);
}

absl::Status ExpertServer::Serve() {
  CountSlots();
  RETURN_IF_ERROR(StartExecutor());
  ExpertServiceImpl::Options service;
  service.endpoint = endpoint_;
  service.max_streams = config_.max_streams;
  service.max_bytes_in_flight = config_.max_bytes_in_flight;
  service.on_drain = [this](bool draining) { SetHealth(!draining); };
  service_ = std::make_unique<ExpertServiceImpl>(
      service, metrics_.service,
      ExpertServiceImpl::Parts{
          &queue_, load_.get(), weights_.get(), contents_.get(),
          config_.shared_memory ? &links_ : nullptr, trace_file_.get()});
  if (device_.cuda.has_value()) AddDeviceMetrics(*device_.cuda, registry_);
  ASSIGN_OR_RETURN(metrics_server_,
                   MetricsServer::Start(config_.metrics_listen, registry_));
  GrpcServerOptions options;
  options.listen = config_.listen;
  options.max_receive_bytes = static_cast<int>(kMaxMessageBytes);
  options.health_names = {v1::ExpertService::service_full_name()};
  options.health_listen = config_.health_listen;
  options.credentials = ServerCredentials(tls_.get());
  ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(options, {service_.get(),
                                                      weight_service_.get()}));
  {
    MutexLock lock(&health_mutex_);
    listening_ = grpc_.get();
    listening_->SetServing(serving_);
  }
  Log(LogLevel::kInfo, "serving",
      {{"grpc", grpc_->address()},
       {"metrics", metrics_server_->url()},
       {"numerics_id", endpoint_.numerics_id()}});
  return absl::OkStatus();
}

void ExpertServer::SetHealth(bool serving) {
  MutexLock lock(&health_mutex_);
  serving_ = serving && fault_.ok();
  if (listening_ != nullptr) listening_->SetServing(serving_);
}

std::string ExpertServer::ReadyJson() const {
  nlohmann::ordered_json json;
  json["grpc"] = grpc_->address();
  if (!grpc_->health_address().empty()) {
    json["health"] = grpc_->health_address();
  }
  json["metrics"] = metrics_server_->url();
  json["pid"] = getpid();
  json["experts"] = expert_list_;
  return json.dump();
}

void ExpertServer::Drain() {
  Log(LogLevel::kInfo, "draining");
  const absl::Duration timeout = absl::Seconds(config_.drain_timeout_seconds);
  const absl::Duration deadline = Clock::Real()->Now() + timeout;
  service_->AnnounceDrain();
  AwaitQuiet(timeout);
  service_->EndStreams();
  // Ours have ended; what is left are watchers of health, who would stay.
  grpc_->Shutdown(std::min(absl::Seconds(1), deadline - Clock::Real()->Now()));
  Log(LogLevel::kInfo, "drained");
}

void ExpertServer::AwaitQuiet(absl::Duration timeout) const {
  const Clock& clock = *Clock::Real();
  const absl::Duration deadline = clock.Now() + timeout;
  absl::Duration quiet_since = clock.Now();
  int64_t seen_works = queue_.TotalWorks();
  const auto quiet = [this] {
    return std::clamp(2 * service_->LongestWatchInterval(), kQuiet, kMaxQuiet);
  };
  while (clock.Now() < deadline && clock.Now() - quiet_since < quiet()) {
    absl::SleepFor(kQuietPoll);
    const int64_t works = queue_.TotalWorks();
    if (works != seen_works || queue_.PendingRows() > 0) {
      seen_works = works;
      quiet_since = clock.Now();
    }
  }
}

}  // namespace expertmesh::expert
