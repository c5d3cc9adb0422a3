#include "router_service/model/kv_cache.h"

#include <vector>

#include "services/linalg/gemm.h"
#include "services/linalg/vector_ops.h"

namespace expertmesh::router {
namespace {

template <typename T>
T Round(float x);
template <>
float Round<float>(float x) {
  return x;
}
template <>
BF16 Round<BF16>(float x) {
  return ToBF16(x);
}

template <typename T>
void WriteHead(const float* key, const float* value, int64_t head_dim,
               int64_t offset, std::byte* key_page, std::byte* value_page) {
  T* k = reinterpret_cast<T*>(key_page) + offset;
  T* v = reinterpret_cast<T*>(value_page) + offset * head_dim;
  for (int64_t d = 0; d < head_dim; ++d) {
    k[d * kPageTokens] = Round<T>(key[d]);
    v[d] = Round<T>(value[d]);
  }
}

// A key's codes lie `step` apart, a value's side by side. Per-thread scratch
// grows to a head once.
void WriteCodes(const float* values, int64_t head_dim, int64_t first,
                int64_t step, int64_t offset, std::byte* page) {
  static thread_local std::vector<uint8_t> codes;
  codes.resize(PaddedQuantizedK(head_dim));
  reinterpret_cast<float*>(page)[offset] =
      QuantizeRow(values, head_dim, codes.data());
  auto* out = reinterpret_cast<int8_t*>(page + kPageScaleBytes) + first;
  for (int64_t d = 0; d < head_dim; ++d) {
    out[d * step] = static_cast<int8_t>(codes[d] - kActivationZero);
  }
}

}  // namespace

KvCache::KvCache(const ModelConfig& config, KvFormat format, int64_t num_pages)
    : format_(format),
      num_pages_(num_pages),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      page_bytes_(KvPageBytes(config.head_dim, format)),
      keys_(PageOffset(config.num_layers, 0, 0)),
      values_(PageOffset(config.num_layers, 0, 0)) {}

size_t KvCache::PageBytes(const ModelConfig& config, KvFormat format) {
  return 2 * config.num_layers * config.num_kv_heads *
         KvPageBytes(config.head_dim, format);
}

void KvCache::Write(int64_t layer, int64_t slot, const float* keys,
                    const float* values) {
  const int64_t page = slot / kPageTokens;
  const int64_t offset = slot % kPageTokens;
  for (int64_t head = 0; head < num_kv_heads_; ++head) {
    const size_t at = PageOffset(layer, page, head);
    const float* key = keys + head * head_dim_;
    const float* value = values + head * head_dim_;
    std::byte* key_page = keys_.data() + at;
    std::byte* value_page = values_.data() + at;
    switch (format_) {
      case KvFormat::kF32:
        WriteHead<float>(key, value, head_dim_, offset, key_page, value_page);
        break;
      case KvFormat::kBF16:
        WriteHead<BF16>(key, value, head_dim_, offset, key_page, value_page);
        break;
      case KvFormat::kInt8:
        WriteCodes(key, head_dim_, offset, kPageTokens, offset, key_page);
        WriteCodes(value, head_dim_, offset * head_dim_, 1, offset, value_page);
        break;
    }
  }
}

}  // namespace expertmesh::router
