#pragma once

// Keys and values of all sequences, in pages from one pool.

#include <cstdint>

#include "services/checkpoint/model_config.h"
#include "services/linalg/attention.h"
#include "services/linalg/buffer.h"
#include "services/linalg/kv_format.h"

namespace expertmesh::router {

// Storage only; who owns which page is the engine's business. A page holds
// kPageTokens positions of every layer and KV head:
//   keys    [layer][page][kv_head][head_dim][kPageTokens]
//   values  [layer][page][kv_head][kPageTokens][head_dim]
// in the layout of attention.h, in int8 with the scales of each
// [page][kv_head]. A slot is page · kPageTokens + offset. One writer; readers
// may run beside each other.
class KvCache {
 public:
  KvCache(const ModelConfig& config, KvFormat format, int64_t num_pages);

  KvFormat format() const { return format_; }
  int64_t num_pages() const { return num_pages_; }
  size_t size_bytes() const { return keys_.size() + values_.size(); }

  // Bytes one page takes, keys and values of all layers.
  static size_t PageBytes(const ModelConfig& config, KvFormat format);

  const std::byte* key_page(int64_t layer, int64_t page,
                            int64_t kv_head) const {
    return keys_.data() + PageOffset(layer, page, kv_head);
  }
  const std::byte* value_page(int64_t layer, int64_t page,
                              int64_t kv_head) const {
    return values_.data() + PageOffset(layer, page, kv_head);
  }

  // Stores one position, rounding to the cache's format. In int8 each head's
  // key and value gets a scale of its own, as QuantizeRow chooses it.
  //   keys, values  [num_kv_heads, head_dim]
  void Write(int64_t layer, int64_t slot, const float* keys,
             const float* values);

 private:
  size_t PageOffset(int64_t layer, int64_t page, int64_t kv_head) const {
    return static_cast<size_t>((layer * num_pages_ + page) * num_kv_heads_ +
                               kv_head) *
           page_bytes_;
  }

  const KvFormat format_;
  const int64_t num_pages_;
  const int64_t num_kv_heads_;
  const int64_t head_dim_;
  const size_t page_bytes_;  // of one head's keys (or values) in one page
  Buffer keys_;
  Buffer values_;
};

}  // namespace expertmesh::router
