#include "router_service/model/kv_cache.h"

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

}  // namespace

KvCache::KvCache(const ModelConfig& config, DType dtype, int64_t num_pages)
    : dtype_(dtype),
      num_pages_(num_pages),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      page_bytes_(kPageTokens * config.head_dim * DTypeBytes(dtype)),
      keys_(PageOffset(config.num_layers, 0, 0)),
      values_(PageOffset(config.num_layers, 0, 0)) {}

size_t KvCache::PageBytes(const ModelConfig& config, DType dtype) {
  return 2 * config.num_layers * config.num_kv_heads * kPageTokens *
         config.head_dim * DTypeBytes(dtype);
}

void KvCache::Write(int64_t layer, int64_t slot, const float* keys,
                    const float* values) {
  const int64_t page = slot / kPageTokens;
  const int64_t offset = slot % kPageTokens;
  for (int64_t head = 0; head < num_kv_heads_; ++head) {
    const size_t at = PageOffset(layer, page, head);
    const float* key = keys + head * head_dim_;
    const float* value = values + head * head_dim_;
    if (dtype_ == DType::kF32) {
      WriteHead<float>(key, value, head_dim_, offset, keys_.data() + at,
                       values_.data() + at);
    } else {
      WriteHead<BF16>(key, value, head_dim_, offset, keys_.data() + at,
                      values_.data() + at);
    }
  }
}

}  // namespace expertmesh::router
