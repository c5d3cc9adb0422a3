#include "router_service/router_model.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/checkpoint/memory_plan.h"
#include "services/core/load_progress.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/core/version.h"
#include "services/linalg/self_check.h"

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

absl::StatusOr<std::unique_ptr<RouterModel>> RouterModel::Open(
    const RouterConfig& config) {
  std::unique_ptr<RouterModel> result(new RouterModel(config));
  ASSIGN_OR_RETURN(result->checkpoint_, Checkpoint::Open(config.model));
  ASSIGN_OR_RETURN(result->tokenizer_, LoadTokenizer(*result->checkpoint_));
  RETURN_IF_ERROR(result->ChooseTypes());
  return result;
}

absl::Status RouterModel::ChooseTypes() {
  format_ = RouterWeightFormat(config_);
  const DType dtype = ActivationDType(config_.router_dtype, model().dtype);
  kv_format_ = RouterKvFormat(config_, dtype);
  // What is not in codes is little: the gates' products, the same everywhere.
  activation_dtype_ = format_ ? DType::kF32 : dtype;
  router_dtype_ = std::string(format_ ? WeightFormatName(*format_)
                                      : DTypeName(activation_dtype_));
  wire_dtype_ = WireDType(config_, model().dtype);
  combine_group_size_ = CombineGroupSize(config_, model().num_experts);
  num_kv_pages_ = NumKvPages(config_, model(), kv_format_);
  RETURN_IF_ERROR(CheckKvCacheSize());
  max_context_tokens_ =
      std::min(model().max_position_embeddings, num_kv_pages_ * kPageTokens);
  return absl::OkStatus();
}

absl::Status RouterModel::CheckKvCacheSize() const {
  if (num_kv_pages_ == 0) {
    return absl::InvalidArgumentError(
        "--kv-cache-bytes is too small for one page of the KV cache; raise it");
  }
  const double bytes =
      static_cast<double>(num_kv_pages_) *
      static_cast<double>(KvCache::PageBytes(model(), kv_format_));
  const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) *
                        static_cast<double>(sysconf(_SC_PAGE_SIZE));
  // Slots are counted in 32 bits.
  if (bytes < memory && num_kv_pages_ * kPageTokens < (int64_t{1} << 31)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrFormat(
      "a KV cache of %d tokens takes %.1f GiB, but this machine has %.1f; "
      "lower --kv-cache-tokens or --kv-cache-bytes",
      num_kv_pages_ * kPageTokens, bytes / (1 << 30), memory / (1 << 30)));
}

absl::Status RouterModel::Load() {
  cache_ = std::make_unique<KvCache>(model(), kv_format_, num_kv_pages_);
  pool_ = std::make_unique<WorkerPool>(config_.threads > 0 ? config_.threads
                                                           : AvailableCpus());
  RETURN_IF_ERROR(LoadWeights());
  RETURN_IF_ERROR(UseIsaThatPasses([this] { return CheckKernels(); }));
  sum_order_ =
      std::string(SumOrder(format_.value_or(FormatOf(activation_dtype_))));
  Log(LogLevel::kInfo, "model loaded",
      {{"model", checkpoint_->name()},
       {"model_type", model().model_type},
       {"weight_bytes", weights_.size_bytes},
       {"kv_cache_bytes", cache_->size_bytes()},
       {"kv_cache_tokens", num_kv_pages_ * kPageTokens},
       {"router_dtype", router_dtype_},
       {"kv_dtype", KvFormatName(kv_format_)},
       {"wire_dtype", DTypeName(wire_dtype_)},
       {"combine_group_size", combine_group_size_}});
  return absl::OkStatus();
}

absl::Status RouterModel::LoadWeights() {
  DenseLoadOptions options = {.format = format_, .pool = pool_.get()};
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

absl::Status RouterModel::CheckKernels() const {
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

v1::Model RouterModel::Describe() const {
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
  out.set_numerics_id(NumericsId());
  out.set_overflow_policy(config_.overflow_policy);
  out.set_capacity_factor(config_.capacity_factor);
  out.set_kv_cache_tokens(static_cast<uint32_t>(num_kv_pages_ * kPageTokens));
  const bool samples = defaults.do_sample.value_or(false);
  out.set_temperature(samples ? defaults.temperature.value_or(1.0f) : 0.0f);
  out.set_top_k_sampling(static_cast<uint32_t>(defaults.top_k.value_or(0)));
  out.set_top_p(defaults.top_p.value_or(1.0f));
  out.set_version(std::string(Version()));
  return out;
}

std::string RouterModel::NumericsId() const {
  // Of one expert or of all, groups give the same bits.
  const bool is_grouped =
      combine_group_size_ > 1 && combine_group_size_ < model().num_experts;
  return absl::StrCat(
      "cpu-", sum_order_, "-", router_dtype_, "-kv-", KvFormatName(kv_format_),
      wire_dtype_ == DType::kInt8 ? "-wire-int8" : "", "-v2",
      is_grouped ? absl::StrCat("-groups-", combine_group_size_) : "",
      config_.mix_numerics ? "-mixed" : "");
}

}  // namespace expertmesh::router
