#include "router_service/router_server.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/time/clock.h"
#include "router_service/api/admin_service_impl.h"
#include "router_service/api/generation_service_impl.h"
#include "router_service/api/model_service_impl.h"
#include "router_service/control/controller.h"
#include "router_service/dispatch/endpoint_placement.h"
#include "router_service/router_metrics.h"
#include "router_service/router_model.h"
#include "router_service/router_ports.h"
#include "router_service/scale_server.h"
#include "router_service/transport/address_file.h"
#include "router_service/transport/endpoint_set.h"
#include "router_service/transport/expert_orders.h"
#include "router_service/transport/resolver.h"
#include "services/checkpoint/memory_plan.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/mesh/mesh_config.h"
#include "services/runtime/metrics.h"
#include "services/runtime/ready_file.h"
#include "services/weights_transfer/weight_service_impl.h"

namespace expertmesh::router {
class RouterServer::Impl {
 public:
  explicit Impl(const RouterConfig& config) : config_(config) {}
  ~Impl() {
    {  // Endpoints report until they are destroyed, which is after the servers.
      MutexLock lock(&mutex_);
      health_ = nullptr;
      prefix_owner_ = nullptr;
    }
    if (ports_ != nullptr) ports_->Close();
    if (expert_rows_ != nullptr) expert_rows_->SetSource(nullptr);
  }
  absl::Status Start();
  absl::Status ServeUntil(ShutdownSignals* signals);

 private:
  // Metrics, of which some must be there before the first scrape, and traces.
  absl::Status StartObserving();
  ExpertDetail expert_detail() const {
    return *ParseExpertDetail(config_.metrics_expert_detail);
  }
  absl::StatusOr<MeshConfig> ReadMesh() const;
  void StartControl();
  void Connect();
  void FindEndpoints();
  void BuildEngine();
  absl::Status Listen();
  void OnEndpoints(const std::vector<EndpointInfo>& endpoints);
  absl::Status WriteReady() const;
  DispatcherOptions DispatchOptions() const;
  CapacityOptions Capacity() const;
  MeshShape Shape() const;
  const Checkpoint& checkpoint() const { return model_->checkpoint(); }
  const ModelConfig& model() const { return model_->model(); }

  const RouterConfig config_;
  // Built in this order, destroyed in the opposite one.
  std::unique_ptr<RouterModel> model_;
  MeshConfig mesh_;
  std::unique_ptr<Metrics> metrics_;
  std::shared_ptr<SlotRowsCollector> expert_rows_;  // null: not by expert
  std::unique_ptr<MetricsServer> metrics_server_;
  std::unique_ptr<TraceFile> trace_file_;  // null: no spans are written
  std::unique_ptr<RequestTracer> tracer_;
  std::unique_ptr<RouterPorts> ports_;
  std::unique_ptr<ExpertTls> expert_tls_;
  std::unique_ptr<PlacementTable> placement_;
  PlacementMetrics placement_metrics_;

  // Whether every slot is covered, and the ports whose health says so, while
  // they listen. Endpoints report on threads of their own.
  Mutex mutex_;
  CondVar covered_changed_;
  bool is_covered_ ABSL_GUARDED_BY(mutex_) = false;
  // Of OnEndpoints alone, which runs once at a time.
  MeshNumerics numerics_;
  RouterPorts* health_ ABSL_GUARDED_BY(mutex_) = nullptr;
  // The engine, to whose prefixes another numerics_id puts an end.
  Engine* prefix_owner_ ABSL_GUARDED_BY(mutex_) = nullptr;

  std::unique_ptr<ExpertOrders> orders_;
  std::unique_ptr<Controller> controller_;  // null without --control
  std::unique_ptr<EndpointSet> endpoints_;
  std::unique_ptr<Resolver> resolver_;
  std::unique_ptr<ScaleServer> scale_server_;
  std::unique_ptr<Dispatcher> dispatcher_;
  std::unique_ptr<Transformer> transformer_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<RequestTranslator> translator_;
  std::unique_ptr<TextWorker> text_worker_;
  std::unique_ptr<GenerationServiceImpl> generation_service_;
  std::unique_ptr<ModelServiceImpl> model_service_;
  std::unique_ptr<CapacitySettings> capacity_;
  std::unique_ptr<AdminServiceImpl> admin_service_;
  std::unique_ptr<WeightServiceImpl> weight_service_;  // null: lends nothing
};

absl::Status RouterServer::Impl::Start() {
  ASSIGN_OR_RETURN(model_, RouterModel::Open(config_));
  // Before what takes long.
  ASSIGN_OR_RETURN(mesh_, ReadMesh());
  RETURN_IF_ERROR(StartObserving());
  ASSIGN_OR_RETURN(ports_, RouterPorts::Load(config_, metrics_.get()));
  expert_tls_ = std::make_unique<ExpertTls>(ports_->mesh_tls());
  RETURN_IF_ERROR(model_->Load());
  metrics_->SetIsa(IsaName());
  if (config_.controls()) StartControl();
  Connect();
  BuildEngine();
  FindEndpoints();
  return Listen();
}

absl::Status RouterServer::Impl::StartObserving() {
  metrics_ = std::make_unique<Metrics>("router", IsaName());
  expert_rows_ =
      MakeExpertRowsCollector(model(), expert_detail(), metrics_.get());
  prometheus::Counter& dropped = metrics_->Counter(
      "expertmesh_router_trace_spans_dropped_total",
      "Spans that were not written because the file was too slow, or broken.");
  if (!config_.trace_file.empty()) {
    TraceFile::Options options;
    options.path = config_.trace_file;
    options.service_name = "expertmesh-router";
    options.on_dropped = [&dropped](int64_t spans) {
      dropped.Increment(static_cast<double>(spans));
    };
    ASSIGN_OR_RETURN(trace_file_, TraceFile::Open(options));
  }
  RequestTracer::Options options;
  options.file = trace_file_.get();
  options.sample_ratio = config_.trace_sample;
  options.model = checkpoint().name();
  tracer_ = std::make_unique<RequestTracer>(options);
  ASSIGN_OR_RETURN(metrics_server_,
                   MetricsServer::Start(config_.metrics_listen, *metrics_));
  return absl::OkStatus();
}

absl::StatusOr<MeshConfig> RouterServer::Impl::ReadMesh() const {
  if (config_.mesh_config.empty()) return MeshOfAddresses(config_.experts_at);
  return ReadMeshFile(config_.mesh_config, model());
}

MeshShape RouterServer::Impl::Shape() const {
  MeshShape shape;
  shape.num_layers = model().num_layers;
  shape.num_experts = model().num_experts;
  const auto format = ParseWeightFormat(mesh_.expert_dtype);
  const int64_t expert_bytes =
      ExpertBytes(model(), format.ok() ? *format : FormatOf(model().dtype));
  for (const auto& layer : model().layers) {
    shape.slot_bytes.push_back(layer.is_moe ? expert_bytes : 0);
  }
  shape.pools = mesh_.pools;
  return shape;
}

void RouterServer::Impl::StartControl() {
  ControllerOptions options;
  options.mesh = Shape();
  // Above those of earlier runs as long as clocks do not go back.
  options.first_version =
      static_cast<uint64_t>(absl::ToUnixMillis(absl::Now()));
  options.load_window = absl::Seconds(config_.load_window_seconds);
  options.auto_rebalance = config_.rebalance == "auto";
  options.rebalance_interval =
      absl::Seconds(config_.rebalance_interval_seconds);
  options.metrics = MakeControllerMetrics(metrics_.get());
  options.rebalance = {
      .min_improvement = config_.rebalance_min_improvement,
      .min_windows = static_cast<int>(config_.rebalance_windows),
      .min_pause = absl::Seconds(config_.rebalance_pause_seconds),
      .bytes_per_minute = config_.rebalance_bytes_per_minute};
  orders_ = MakeGrpcExpertOrders(expert_tls_.get());
  controller_ = std::make_unique<Controller>(std::move(options), orders_.get(),
                                             Clock::Real());
}

void RouterServer::Impl::Connect() {
  placement_metrics_ = MakePlacementMetrics(metrics_.get());
  placement_ = std::make_unique<PlacementTable>(
      PlaceOnEndpoints(model(), {}, "").placement);
  EndpointSet::Options options;
  options.model = {.model_type = model().model_type,
                   .hidden_size = static_cast<uint32_t>(model().hidden_size),
                   .num_layers = static_cast<uint32_t>(model().num_layers),
                   .num_experts = static_cast<uint32_t>(model().num_experts),
                   .checkpoint_fingerprint = checkpoint().fingerprint(),
                   .expert_dtype = mesh_.expert_dtype,
                   .int8_rows = model_->wire_dtype() == DType::kInt8};
  options.on_change = [this](const std::vector<EndpointInfo>& endpoints) {
    OnEndpoints(endpoints);
  };
  if (controller_ != nullptr) {
    options.on_load = [this](const std::string& address,
                             const EndpointLoad& load) {
      controller_->OnLoad(address, load);
    };
  }
  options.metrics = MakeTransportMetrics(metrics_.get());
  options.shared_memory = config_.shared_memory;
  options.tls = expert_tls_.get();
  endpoints_ = std::make_unique<EndpointSet>(std::move(options));
}

void RouterServer::Impl::FindEndpoints() {
  Resolver::Options options;
  options.interval = absl::Seconds(config_.resolve_interval_seconds);
  std::map<std::string, std::string> tls_names;
  for (const PoolConfig& pool : mesh_.pools) {
    tls_names[pool.name] = TlsServerName(pool);
  }
  const auto set_addresses = [this, tls_names](
                                 const std::string& pool,
                                 const std::vector<std::string>& addresses) {
    for (const std::string& address : addresses) {
      expert_tls_->Expect(address, tls_names.at(pool));
    }
    endpoints_->SetAddresses(pool, addresses);
  };
  options.on_change = set_addresses;
  for (const PoolConfig& pool : mesh_.pools) {
    const PoolTarget& target = pool.target;
    if (!target.addresses.empty()) {
      set_addresses(pool.name, target.addresses);
      continue;
    }
    Resolver::Source source;
    source.pool = pool.name;
    source.resolutions = MakeResolutionCounters(pool.name, metrics_.get());
    if (target.dns.has_value()) {
      source.name = target.dns->host;
      source.lookup = [name = *target.dns] { return LookUpAddresses(name); };
    } else {
      source.name = target.file;
      source.lookup = [path = target.file] { return ReadAddressFile(path); };
    }
    options.sources.push_back(std::move(source));
  }
  resolver_ = std::make_unique<Resolver>(std::move(options));
}

void RouterServer::Impl::OnEndpoints(
    const std::vector<EndpointInfo>& endpoints) {
  std::map<std::string, double> weights;
  for (const PoolConfig& pool : mesh_.pools) weights[pool.name] = pool.weight;
  const bool ends_prefixes = numerics_.Choose(endpoints);
  EndpointPlacement placed =
      PlaceOnEndpoints(model(), endpoints, numerics_.chosen(), weights);
  placement_->Set(std::move(placed.placement));
  // Afterwards, so that a step that still saw the placement before is forgotten
  // too; and whatever the coverage, since steps go on while they wait.
  if (ends_prefixes) {
    MutexLock lock(&mutex_);
    if (prefix_owner_ != nullptr) prefix_owner_->ForgetPrefixes();
  }
  if (placed.uncovered_slots == 0 && numerics_.chosen() != numerics_.kept()) {
    if (!numerics_.kept().empty()) {
      Log(LogLevel::kWarning, "the mesh goes on with another numerics_id",
          {{"before", numerics_.kept()}, {"now", numerics_.chosen()}});
    }
    numerics_.Keep();
  }
  placement_metrics_.Publish(placed);
  // Last to hear: what it sees is routed to.
  if (controller_ != nullptr) {
    controller_->OnEndpoints(endpoints,
                             config_.mix_numerics ? "" : numerics_.chosen());
  }
  MutexLock lock(&mutex_);
  const bool covered = placed.uncovered_slots == 0;
  if (covered == is_covered_) return;
  is_covered_ = covered;
  Log(covered ? LogLevel::kInfo : LogLevel::kWarning,
      covered ? "every expert is covered" : "experts are not covered",
      {{"uncovered_slots", placed.uncovered_slots}});
  if (health_ != nullptr) health_->SetServing(covered);
  covered_changed_.NotifyAll();
}

DispatcherOptions RouterServer::Impl::DispatchOptions() const {
  DispatcherOptions options;
  options.wire_dtype = model_->wire_dtype();
  options.hidden_size = model().hidden_size;
  options.max_tokens = config_.max_step_tokens;
  options.top_k = model().top_k;
  options.combine_group_size = model_->combine_group_size();
  options.uncovered_timeout = absl::Seconds(config_.uncovered_timeout_seconds);
  options.hedge_budget = config_.hedge_budget;
  return options;
}

CapacityOptions RouterServer::Impl::Capacity() const {
  return {.capacity_factor = config_.capacity_factor,
          .min_capacity = config_.min_capacity,
          .max_lost_gate_mass = config_.max_lost_gate_mass};
}

void RouterServer::Impl::BuildEngine() {
  dispatcher_ = std::make_unique<Dispatcher>(
      DispatchOptions(), placement_.get(), endpoints_->transport(),
      MakeDispatchMetrics(metrics_.get()));
  TransformerOptions transformer;
  transformer.dtype = model_->activation_dtype();
  transformer.max_tokens = config_.max_step_tokens;
  transformer.micro_batches =
      config_.micro_batches == "auto" ? 0 : config_.micro_batches[0] - '0';
  transformer.max_context_tokens = model_->max_context_tokens();
  transformer.capacity = Capacity();
  transformer_ =
      std::make_unique<Transformer>(model(), model_->weights(), transformer,
                                    dispatcher_.get(), model_->pool());
  EngineOptions engine;
  engine.scheduler.max_step_tokens = config_.max_step_tokens;
  // Every running request decodes in every step, and leaves room for prefill.
  engine.scheduler.max_sequences = std::min(
      config_.max_sequences,
      std::max<int64_t>(1, config_.max_step_tokens - PrefillBudget::kFloor));
  engine.scheduler.target_inter_token_latency =
      absl::Seconds(config_.target_inter_token_latency_seconds);
  engine.max_context_tokens = model_->max_context_tokens();
  engine.max_queue = config_.max_queue;
  engine.priority_step = absl::Seconds(config_.priority_step_seconds);
  engine.prefix_cache = config_.prefix_cache == "on";
  engine.mix_numerics = config_.mix_numerics;
  engine.counts_expert_rows = expert_rows_ != nullptr;
  engine_ = std::make_unique<Engine>(
      engine, model(), transformer_.get(), model_->cache(), model_->pool(),
      MakeEngineMetrics(model(), expert_detail(), metrics_.get()),
      Clock::Real());
  if (expert_rows_ != nullptr) {
    expert_rows_->SetSource([this] { return engine_->expert_load().Totals(); });
  }
  MutexLock lock(&mutex_);
  prefix_owner_ = engine_.get();
}

absl::Status RouterServer::Impl::Listen() {
  ASSIGN_OR_RETURN(scale_server_, ScaleServer::Start(
                                      config_, mesh_,
                                      [this] { return endpoints_->Snapshot(); },
                                      metrics_.get()));
  RequestTranslator::Options translate;
  translate.overflow_policy = *ParseOverflowPolicy(config_.overflow_policy);
  translate.vocab_size = model().vocab_size;
  translate.max_context_tokens = model_->max_context_tokens();
  translate.defaults = checkpoint().generation_defaults();
  translator_ =
      std::make_unique<RequestTranslator>(translate, model_->tokenizer());
  text_worker_ = std::make_unique<TextWorker>(TextWorker::Options());
  generation_service_ = std::make_unique<GenerationServiceImpl>(
      translator_.get(), engine_.get(), text_worker_.get(), model_->tokenizer(),
      MakeApiMetrics(metrics_.get()), Clock::Real(), model().num_experts,
      tracer_.get());
  model_service_ = std::make_unique<ModelServiceImpl>(model_->Describe());
  capacity_ = std::make_unique<CapacitySettings>(
      Capacity(), translate.overflow_policy, engine_.get(), translator_.get(),
      model_service_.get());
  admin_service_ = std::make_unique<AdminServiceImpl>(
      AdminServiceImpl::Parts{.model = &model(),
                              .engine = engine_.get(),
                              .endpoints = endpoints_.get(),
                              .capacity = capacity_.get(),
                              .controller = controller_.get(),
                              .scales = scale_server_->monitor(),
                              .clock = Clock::Real()});

  RouterPorts::Services services;
  services.client = {generation_service_.get(), model_service_.get()};
  services.admin = {admin_service_.get()};
  // Needs no experts: those who are to hold them may be waiting for it.
  if (config_.lend_weights) {
    ASSIGN_OR_RETURN(weight_service_,
                     WeightServiceImpl::Create(checkpoint(), /*options=*/{}));
    services.admin.push_back(weight_service_.get());
  }
  RETURN_IF_ERROR(ports_->Listen(services));
  MutexLock lock(&mutex_);
  health_ = ports_.get();
  health_->SetServing(is_covered_);
  Log(LogLevel::kInfo, "listening",
      {{"grpc", ports_->client_address()},
       {"admin", ports_->admin_address()},
       {"health", ports_->health_address()},
       {"metrics", metrics_server_->url()},
       {"scaler", scale_server_->address()}});
  return absl::OkStatus();
}

absl::Status RouterServer::Impl::WriteReady() const {
  if (config_.ready_file.empty()) return absl::OkStatus();
  nlohmann::json ready = {{"grpc", ports_->client_address()},
                          {"admin", ports_->admin_address()},
                          {"metrics", metrics_server_->url()},
                          {"pid", getpid()}};
  if (!ports_->health_address().empty()) {
    ready["health"] = ports_->health_address();
  }
  if (!scale_server_->address().empty()) {
    ready["scaler"] = scale_server_->address();
  }
  return WriteReadyFile(config_.ready_file, ready.dump());
}

absl::Status RouterServer::Impl::ServeUntil(ShutdownSignals* signals) {
  // Signals cannot be awaited together with the experts, so they are looked for
  // now and then until the start is over.
  bool is_ready = false;
  while (!is_ready) {
    {
      MutexLock lock(&mutex_);
      is_ready = covered_changed_.WaitFor(lock, absl::Milliseconds(100),
                                          [this] { return is_covered_; });
    }
    if (is_ready) {
      RETURN_IF_ERROR(WriteReady());
    } else if (signals->Wait(absl::ZeroDuration())) {
      break;
    }
  }
  signals->Wait();
  Log(LogLevel::kInfo, "draining",
      {{"timeout_seconds", config_.drain_timeout_seconds}});
  {
    MutexLock lock(&mutex_);
    health_->SetServing(false);
    health_ = nullptr;
  }
  engine_->Drain(absl::Seconds(config_.drain_timeout_seconds));
  admin_service_->EndWatches();
  if (controller_ != nullptr) controller_->Stop();
  ports_->Shutdown(absl::Seconds(1));
  Log(LogLevel::kInfo, "stopped");
  return absl::OkStatus();
}

RouterServer::RouterServer(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
RouterServer::~RouterServer() = default;

absl::StatusOr<std::unique_ptr<RouterServer>> RouterServer::Start(
    const RouterConfig& config) {
  RETURN_IF_ERROR(CheckRouterConfig(config));
  auto impl = std::make_unique<Impl>(config);
  RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<RouterServer>(new RouterServer(std::move(impl)));
}

absl::Status RouterServer::ServeUntil(ShutdownSignals* signals) {
  return impl_->ServeUntil(signals);
}

}  // namespace expertmesh::router
