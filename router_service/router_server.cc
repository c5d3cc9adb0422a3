#include "router_service/router_server.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "router_service/api/admin_service_impl.h"
#include "router_service/api/generation_service_impl.h"
#include "router_service/api/model_service_impl.h"
#include "router_service/control/controller.h"
#include "router_service/dispatch/endpoint_placement.h"
#include "router_service/router_metrics.h"
#include "router_service/router_ports.h"
#include "router_service/scale_server.h"
#include "router_service/transport/address_file.h"
#include "router_service/transport/endpoint_set.h"
#include "router_service/transport/expert_orders.h"
#include "router_service/transport/resolver.h"
#include "services/checkpoint/memory_plan.h"
#include "services/core/load_progress.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/core/version.h"
#include "services/linalg/self_check.h"
#include "services/mesh/mesh_config.h"
#include "services/runtime/metrics.h"
#include "services/runtime/ready_file.h"
#include "services/weights_transfer/weight_service_impl.h"

namespace expertmesh::router {
namespace {

// KV pages within the configured memory or number of tokens, and never more
// than all running requests could fill.
int64_t NumKvPages(const RouterConfig& config, const ModelConfig& model,
                   KvFormat format) {
  const auto pages = [](int64_t tokens) {
    return (tokens + kPageTokens - 1) / kPageTokens;
  };
  if (config.kv_cache_tokens > 0) return pages(config.kv_cache_tokens);
  const int64_t by_memory =
      config.kv_cache_bytes /
      static_cast<int64_t>(KvCache::PageBytes(model, format));
  return std::min(by_memory,
                  pages(model.max_position_embeddings) * config.max_sequences);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(
    const Checkpoint& checkpoint) {
  const std::string path = checkpoint.directory() + "/tokenizer.json";
  // A link that leads nowhere is a broken checkpoint, not one without the file.
  std::error_code error;
  if (std::filesystem::symlink_status(path, error).type() ==
      std::filesystem::file_type::not_found) {
    Log(LogLevel::kWarning, "no tokenizer.json: serving token ids only",
        {{"model", checkpoint.directory()}});
    return nullptr;
  }
  return Tokenizer::Load(path);
}

}  // namespace

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
  absl::Status LoadModel();
  // Metrics that must be there before the first scrape, and traces.
  absl::Status StartObserving();
  ExpertDetail expert_detail() const {
    return *ParseExpertDetail(config_.metrics_expert_detail);
  }
  absl::Status LoadWeights(std::optional<WeightFormat> format);
  // Each shape once.
  absl::Status CheckKernels() const;
  absl::Status CheckKvCacheSize(int64_t num_pages) const;
  absl::StatusOr<MeshConfig> ReadMesh() const;
  void StartControl();
  void Connect();
  void FindEndpoints();
  void BuildEngine();
  absl::Status Listen();
  void OnEndpoints(const std::vector<EndpointInfo>& endpoints);
  v1::Model Describe() const;
  absl::Status WriteReady() const;
  DispatcherOptions DispatchOptions() const;
  CapacityOptions Capacity() const;
  MeshShape Shape() const;
  const ModelConfig& model() const { return checkpoint_->config(); }

  const RouterConfig config_;
  // Built in this order, destroyed in the opposite one.
  std::unique_ptr<Checkpoint> checkpoint_;
  MeshConfig mesh_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Metrics> metrics_;
  std::shared_ptr<SlotRowsCollector> expert_rows_;  // null: not by expert
  std::unique_ptr<MetricsServer> metrics_server_;
  std::unique_ptr<TraceFile> trace_file_;  // null: no spans are written
  std::unique_ptr<RequestTracer> tracer_;
  std::unique_ptr<RouterPorts> ports_;
  std::unique_ptr<ExpertTls> expert_tls_;
  DType activation_dtype_ = DType::kF32;
  KvFormat kv_format_ = KvFormat::kF32;
  std::string router_dtype_;  // as announced
  std::string sum_order_;
  DType wire_dtype_ = DType::kF32;
  int64_t combine_group_size_ = 1;
  int64_t max_context_tokens_ = 0;
  DenseWeights weights_;
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
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<Dispatcher> dispatcher_;
  std::unique_ptr<Transformer> transformer_;
  std::unique_ptr<KvCache> cache_;
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
  RETURN_IF_ERROR(LoadModel());
  if (config_.controls()) StartControl();
  Connect();
  BuildEngine();
  FindEndpoints();
  return Listen();
}

absl::Status RouterServer::Impl::LoadModel() {
  ASSIGN_OR_RETURN(checkpoint_, Checkpoint::Open(config_.model));
  // Before what takes long.
  ASSIGN_OR_RETURN(mesh_, ReadMesh());
  ASSIGN_OR_RETURN(tokenizer_, LoadTokenizer(*checkpoint_));
  const std::optional<WeightFormat> format = RouterWeightFormat(config_);
  const DType dtype = ActivationDType(config_.router_dtype, model().dtype);
  kv_format_ = RouterKvFormat(config_, dtype);
  // What is not in codes is little: the gates' products, the same everywhere.
  activation_dtype_ = format ? DType::kF32 : dtype;
  router_dtype_ = std::string(format ? WeightFormatName(*format)
                                     : DTypeName(activation_dtype_));
  wire_dtype_ = WireDType(config_, model().dtype);
  combine_group_size_ = CombineGroupSize(config_, model().num_experts);

  metrics_ = std::make_unique<Metrics>("router", IsaName());
  RETURN_IF_ERROR(StartObserving());
  ASSIGN_OR_RETURN(metrics_server_,
                   MetricsServer::Start(config_.metrics_listen, *metrics_));
  ASSIGN_OR_RETURN(ports_, RouterPorts::Load(config_, metrics_.get()));
  expert_tls_ = std::make_unique<ExpertTls>(ports_->mesh_tls());
  const int64_t num_pages = NumKvPages(config_, model(), kv_format_);
  if (num_pages == 0) {
    return absl::InvalidArgumentError(
        "--kv-cache-bytes is too small for one page of the KV cache; raise it");
  }
  RETURN_IF_ERROR(CheckKvCacheSize(num_pages));
  max_context_tokens_ =
      std::min(model().max_position_embeddings, num_pages * kPageTokens);
  cache_ = std::make_unique<KvCache>(model(), kv_format_, num_pages);
  pool_ = std::make_unique<WorkerPool>(config_.threads > 0 ? config_.threads
                                                           : AvailableCpus());
  RETURN_IF_ERROR(LoadWeights(format));
  RETURN_IF_ERROR(UseIsaThatPasses([this] { return CheckKernels(); }));
  metrics_->SetIsa(IsaName());
  sum_order_ =
      std::string(SumOrder(format.value_or(FormatOf(activation_dtype_))));
  Log(LogLevel::kInfo, "model loaded",
      {{"model", checkpoint_->name()},
       {"model_type", model().model_type},
       {"weight_bytes", weights_.size_bytes},
       {"kv_cache_bytes", cache_->size_bytes()},
       {"kv_cache_tokens", num_pages * kPageTokens},
       {"router_dtype", router_dtype_},
       {"kv_dtype", KvFormatName(kv_format_)},
       {"wire_dtype", DTypeName(wire_dtype_)},
       {"combine_group_size", combine_group_size_}});
  return absl::OkStatus();
}

absl::Status RouterServer::Impl::StartObserving() {
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
  options.model = checkpoint_->name();
  tracer_ = std::make_unique<RequestTracer>(options);
  return absl::OkStatus();
}

absl::Status RouterServer::Impl::LoadWeights(
    std::optional<WeightFormat> format) {
  DenseLoadOptions options = {.format = format, .pool = pool_.get()};
  std::optional<PackCache> cache;
  if (!config_.pack_cache.empty()) {
    options.cache = &cache.emplace(config_.pack_cache, checkpoint_->local_id());
  }
  LoadProgress progress(RouterMatrixBytes(*checkpoint_));
  options.progress = [&progress](int64_t bytes) {
    const auto report = progress.Add(bytes);
    if (report) LogProgress("packing the router's weights", *report);
  };
  ASSIGN_OR_RETURN(weights_, DenseWeights::Load(*checkpoint_, options));
  if (cache) {
    Log(LogLevel::kInfo, "pack cache used",
        {{"folder", config_.pack_cache},
         {"hits", cache->hits()},
         {"misses", cache->misses()},
         {"stored", cache->stored()}});
  }
  return absl::OkStatus();
}

absl::Status RouterServer::Impl::CheckKernels() const {
  std::set<std::pair<int64_t, int64_t>> seen;
  const auto check = [&](const PackedMatrix& w) {
    if (!seen.emplace(w.n(), w.k()).second) return absl::OkStatus();
    return CheckRowsAgree(w, activation_dtype_);
  };
  for (const LayerWeights& layer : weights_.layers) {
    RETURN_IF_ERROR(check(layer.attention.qkv));
    RETURN_IF_ERROR(check(layer.attention.o_proj));
    RETURN_IF_ERROR(check(layer.gate));
    for (const auto* ffn : {&layer.dense, &layer.shared}) {
      if (!*ffn) continue;
      RETURN_IF_ERROR(check((*ffn)->gate_up));
      RETURN_IF_ERROR(check((*ffn)->down_proj));
    }
  }
  return check(weights_.lm_head);
}

absl::Status RouterServer::Impl::CheckKvCacheSize(int64_t num_pages) const {
  const double bytes =
      static_cast<double>(num_pages) *
      static_cast<double>(KvCache::PageBytes(model(), kv_format_));
  const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) *
                        static_cast<double>(sysconf(_SC_PAGE_SIZE));
  // Slots are counted in 32 bits.
  if (bytes < memory && num_pages * kPageTokens < (int64_t{1} << 31)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrFormat(
      "a KV cache of %d tokens takes %.1f GiB, but this machine has %.1f; "
      "lower --kv-cache-tokens or --kv-cache-bytes",
      num_pages * kPageTokens, bytes / (1 << 30), memory / (1 << 30)));
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
                   .checkpoint_fingerprint = checkpoint_->fingerprint(),
                   .expert_dtype = mesh_.expert_dtype,
                   .int8_rows = wire_dtype_ == DType::kInt8};
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
  options.wire_dtype = wire_dtype_;
  options.hidden_size = model().hidden_size;
  options.max_tokens = config_.max_step_tokens;
  options.top_k = model().top_k;
  options.combine_group_size = combine_group_size_;
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
  transformer.dtype = activation_dtype_;
  transformer.max_tokens = config_.max_step_tokens;
  transformer.micro_batches =
      config_.micro_batches == "auto" ? 0 : config_.micro_batches[0] - '0';
  transformer.max_context_tokens = max_context_tokens_;
  transformer.capacity = Capacity();
  transformer_ = std::make_unique<Transformer>(model(), weights_, transformer,
                                               dispatcher_.get(), pool_.get());
  EngineOptions engine;
  engine.scheduler.max_step_tokens = config_.max_step_tokens;
  // Every running request decodes in every step,
  // and leaves room for prefill.
  engine.scheduler.max_sequences = std::min(
      config_.max_sequences,
      std::max<int64_t>(1, config_.max_step_tokens - PrefillBudget::kFloor));
  engine.scheduler.target_inter_token_latency =
      absl::Seconds(config_.target_inter_token_latency_seconds);
  engine.max_context_tokens = max_context_tokens_;
  engine.max_queue = config_.max_queue;
  engine.priority_step = absl::Seconds(config_.priority_step_seconds);
  engine.prefix_cache = config_.prefix_cache == "on";
  engine.mix_numerics = config_.mix_numerics;
  engine.counts_expert_rows = expert_rows_ != nullptr;
  engine_ = std::make_unique<Engine>(
      engine, model(), transformer_.get(), cache_.get(), pool_.get(),
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
  translate.max_context_tokens = max_context_tokens_;
  translate.defaults = checkpoint_->generation_defaults();
  translator_ =
      std::make_unique<RequestTranslator>(translate, tokenizer_.get());
  text_worker_ = std::make_unique<TextWorker>(TextWorker::Options());
  generation_service_ = std::make_unique<GenerationServiceImpl>(
      translator_.get(), engine_.get(), text_worker_.get(), tokenizer_.get(),
      MakeApiMetrics(metrics_.get()), Clock::Real(), model().num_experts,
      tracer_.get());
  model_service_ = std::make_unique<ModelServiceImpl>(Describe());
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
                     WeightServiceImpl::Create(*checkpoint_, /*options=*/{}));
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

v1::Model RouterServer::Impl::Describe() const {
  const ModelConfig& config = model();
  const GenerationDefaults& defaults = checkpoint_->generation_defaults();
  v1::Model out;
  out.set_name(checkpoint_->name());
  out.set_model_type(config.model_type);
  out.set_vocab_size(static_cast<uint32_t>(config.vocab_size));
  out.set_hidden_size(static_cast<uint32_t>(config.hidden_size));
  out.set_num_layers(static_cast<uint32_t>(config.num_layers));
  out.set_num_moe_layers(static_cast<uint32_t>(config.num_moe_layers()));
  out.set_num_experts(static_cast<uint32_t>(config.num_experts));
  out.set_top_k(static_cast<uint32_t>(config.top_k));
  out.set_max_context_tokens(static_cast<uint32_t>(max_context_tokens_));
  out.set_has_tokenizer(tokenizer_ != nullptr);
  out.mutable_eos_token_ids()->Add(defaults.eos_token_ids.begin(),
                                   defaults.eos_token_ids.end());
  out.set_checkpoint_fingerprint(checkpoint_->fingerprint());
  out.set_checkpoint_dtype(std::string(DTypeName(config.dtype)));
  out.set_router_dtype(router_dtype_);
  out.set_kv_dtype(std::string(KvFormatName(kv_format_)));
  out.set_wire_dtype(std::string(DTypeName(wire_dtype_)));
  // Of one expert or of all, groups give the same bits.
  const bool is_grouped =
      combine_group_size_ > 1 && combine_group_size_ < config.num_experts;
  out.set_numerics_id(absl::StrCat(
      "cpu-", sum_order_, "-", router_dtype_, "-kv-", KvFormatName(kv_format_),
      wire_dtype_ == DType::kInt8 ? "-wire-int8" : "", "-v2",
      is_grouped ? absl::StrCat("-groups-", combine_group_size_) : "",
      config_.mix_numerics ? "-mixed" : ""));
  out.set_overflow_policy(config_.overflow_policy);
  out.set_capacity_factor(config_.capacity_factor);
  out.set_kv_cache_tokens(
      static_cast<uint32_t>(cache_->num_pages() * kPageTokens));
  const bool samples = defaults.do_sample.value_or(false);
  out.set_temperature(samples ? defaults.temperature.value_or(1.0f) : 0.0f);
  out.set_top_k_sampling(static_cast<uint32_t>(defaults.top_k.value_or(0)));
  out.set_top_p(defaults.top_p.value_or(1.0f));
  out.set_version(std::string(Version()));
  return out;
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
