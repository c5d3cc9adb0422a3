#include "router_service/model/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "services/linalg/vector_ops.h"

namespace expertmesh::router {
namespace {

// Enough queries to share each key's load, few enough to spread a prompt over
// the threads.
constexpr int64_t kQueriesPerTask = 16;

// Per-thread gather space; grows to the largest task once.
struct Scratch {
  std::vector<float> queries;
  std::vector<float> outputs;
  std::vector<int64_t> positions;
  std::vector<const std::byte*> key_pages;
  std::vector<const std::byte*> value_pages;
};

Scratch& ThreadScratch() {
  static thread_local Scratch scratch;
  return scratch;
}

}  // namespace

Attention::Attention(const ModelConfig& config, const ActivationType& type,
                     int64_t max_tokens, int64_t max_context_tokens)
    : config_(config),
      qkv_size_(config.q_size() + 2 * config.kv_size()),
      scale_(1.0f / std::sqrt(static_cast<float>(config.head_dim))),
      rope_(config.rope, max_context_tokens),
      qkv_(max_tokens * qkv_size_ * sizeof(float)),
      attended_(max_tokens * config.q_size() * sizeof(float)),
      o_input_(type, max_tokens, config.q_size()) {}

void Attention::NormHeads(const std::vector<float>& weight, int64_t num_heads,
                          float* heads) const {
  const float eps = static_cast<float>(config_.norm_eps);
  if (config_.qk_norm == QkNorm::kWholeVector) {
    RmsNorm(heads, weight.data(), eps, num_heads * config_.head_dim, heads);
    return;
  }
  for (int64_t head = 0; head < num_heads; ++head) {
    float* values = heads + head * config_.head_dim;
    RmsNorm(values, weight.data(), eps, config_.head_dim, values);
  }
}

void Attention::PrepareToken(const AttentionWeights& weights, int64_t position,
                             float* qkv) const {
  float* q = qkv;
  float* k = q + config_.q_size();
  if (!weights.qkv_bias.empty()) Add(weights.qkv_bias.data(), qkv_size_, qkv);
  if (config_.qk_norm != QkNorm::kNone) {
    NormHeads(weights.q_norm, config_.num_heads, q);
    NormHeads(weights.k_norm, config_.num_kv_heads, k);
  }
  if (config_.clip_qkv) {
    const float limit = *config_.clip_qkv;
    for (int64_t i = 0; i < qkv_size_; ++i) {
      qkv[i] = std::clamp(qkv[i], -limit, limit);
    }
  }
  for (int64_t head = 0; head < config_.num_heads; ++head) {
    rope_.Rotate(position, q + head * config_.head_dim);
  }
  for (int64_t head = 0; head < config_.num_kv_heads; ++head) {
    rope_.Rotate(position, k + head * config_.head_dim);
  }
  for (int64_t i = 0; i < config_.q_size(); ++i) q[i] *= scale_;
}

void Attention::AttendTask(int64_t layer, const TokenBatch& batch, int64_t seq,
                           int64_t first_token, int64_t last_token,
                           int64_t kv_head, const KvCache& cache) {
  Scratch& scratch = ThreadScratch();
  const int64_t head_dim = config_.head_dim;
  const int64_t group = config_.num_heads / config_.num_kv_heads;
  const int64_t num_rows = (last_token - first_token) * group;
  scratch.queries.resize(num_rows * head_dim);
  scratch.outputs.resize(num_rows * head_dim);
  scratch.positions.resize(num_rows);

  // Rows are (token, head of the group): heads of a group lie side by side.
  const size_t group_bytes = group * head_dim * sizeof(float);
  for (int64_t token = first_token; token < last_token; ++token) {
    const int64_t row = (token - first_token) * group;
    std::memcpy(
        &scratch.queries[row * head_dim],
        qkv_.as<float>() + token * qkv_size_ + kv_head * group * head_dim,
        group_bytes);
    std::fill_n(&scratch.positions[row], group, batch.positions[token]);
  }
  const int64_t num_pages = batch.positions[last_token - 1] / kPageTokens + 1;
  scratch.key_pages.resize(num_pages);
  scratch.value_pages.resize(num_pages);
  const int32_t* table = &batch.block_tables[seq * batch.max_blocks];
  for (int64_t page = 0; page < num_pages; ++page) {
    scratch.key_pages[page] = cache.key_page(layer, table[page], kv_head);
    scratch.value_pages[page] = cache.value_page(layer, table[page], kv_head);
  }
  const PagedKv kv{cache.format(), scratch.key_pages.data(),
                   scratch.value_pages.data()};
  AttendRows(scratch.queries.data(), scratch.positions.data(), num_rows,
             head_dim, config_.layers[layer].sliding_window.value_or(0), kv,
             scratch.outputs.data());
  for (int64_t token = first_token; token < last_token; ++token) {
    std::memcpy(attended_.as<float>() + token * config_.q_size() +
                    kv_head * group * head_dim,
                &scratch.outputs[(token - first_token) * group * head_dim],
                group_bytes);
  }
}

void Attention::Run(int64_t layer, const AttentionWeights& weights,
                    const TokenBatch& batch, const ActivationView& x,
                    KvCache* cache, float* y, WorkerPool& pool) {
  const int64_t num_tokens = batch.num_tokens();
  float* qkv = qkv_.as<float>();
  Gemm(x, num_tokens, weights.qkv, qkv, qkv_size_, pool);
  ForRows(pool, num_tokens, [&](int64_t token) {
    float* projections = qkv + token * qkv_size_;
    PrepareToken(weights, batch.positions[token], projections);
    const float* keys = projections + config_.q_size();
    cache->Write(layer, batch.slot_mapping[token], keys,
                 keys + config_.kv_size());
  });

  tasks_.clear();
  for (int64_t seq = 0; seq < batch.num_seqs(); ++seq) {
    const int32_t end = batch.seq_starts[seq + 1];
    for (int32_t token = batch.seq_starts[seq]; token < end;
         token += kQueriesPerTask) {
      tasks_.push_back({static_cast<int32_t>(seq), token,
                        std::min<int32_t>(end, token + kQueriesPerTask)});
    }
  }
  // The longest first, or the last thread to finish would have one of them.
  std::sort(tasks_.begin(), tasks_.end(), [&](const Task& a, const Task& b) {
    const auto length = [&](const Task& task) {
      return batch.positions[task.last_token - 1];
    };
    return length(a) != length(b) ? length(a) > length(b)
                                  : a.first_token < b.first_token;
  });
  const int64_t kv_heads = config_.num_kv_heads;
  pool.ParallelFor(static_cast<int64_t>(tasks_.size()) * kv_heads,
                   [&](int64_t i) {
                     const Task& task = tasks_[i / kv_heads];
                     AttendTask(layer, batch, task.seq, task.first_token,
                                task.last_token, i % kv_heads, *cache);
                   });

  ForRows(pool, num_tokens, [&](int64_t token) {
    o_input_.Store(token, attended_.as<float>() + token * config_.q_size());
  });
  Gemm(o_input_.view(), num_tokens, weights.o_proj, y, config_.hidden_size,
       pool);
  if (!weights.o_bias.empty()) {
    ForRows(pool, num_tokens, [&](int64_t token) {
      Add(weights.o_bias.data(), config_.hidden_size,
          y + token * config_.hidden_size);
    });
  }
}

}  // namespace expertmesh::router
