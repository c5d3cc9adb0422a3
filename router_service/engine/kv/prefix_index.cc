#include "router_service/engine/kv/prefix_index.h"

#include <algorithm>
#include <bit>

#include "absl/hash/hash.h"

namespace expertmesh::router {

PrefixIndex::PrefixIndex(int64_t num_pages)
    : entries_(num_pages + 1),
      buckets_(std::bit_ceil(static_cast<uint64_t>(num_pages) + 1), kNone),
      tokens_(num_pages * kPageTokens) {
  const auto ring = static_cast<int32_t>(num_pages);
  entries_[ring].older = entries_[ring].newer = ring;
}

uint32_t PrefixIndex::BucketOf(int32_t parent,
                               absl::Span<const int32_t> tokens) const {
  // Seeded by process, so that nobody can choose prompts that collide.
  return static_cast<uint32_t>(absl::HashOf(parent, tokens) &
                               (buckets_.size() - 1));
}

int32_t PrefixIndex::Find(int32_t parent,
                          absl::Span<const int32_t> tokens) const {
  int32_t page = buckets_[BucketOf(parent, tokens)];
  while (page != kNone &&
         !(entries_[page].parent == parent && TokensOf(page) == tokens)) {
    page = entries_[page].next;
  }
  return page;
}

void PrefixIndex::Insert(int32_t parent, absl::Span<const int32_t> tokens,
                         int32_t page) {
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + page * kPageTokens);
  Entry& entry = entries_[page];
  entry.is_known = true;
  entry.is_unused = false;
  entry.parent = parent;
  entry.bucket = BucketOf(parent, tokens);
  entry.next = buckets_[entry.bucket];
  buckets_[entry.bucket] = page;
  ++num_known_;
}

void PrefixIndex::SetUnused(int32_t page) {
  Entry& entry = entries_[page];
  Entry& ring = entries_.back();
  entry.is_unused = true;
  entry.older = ring.older;
  entry.newer = static_cast<int32_t>(entries_.size()) - 1;
  entries_[ring.older].newer = page;
  ring.older = page;
  ++num_unused_;
}

void PrefixIndex::SetUsed(int32_t page) {
  Entry& entry = entries_[page];
  if (!entry.is_unused) return;
  entry.is_unused = false;
  entries_[entry.older].newer = entry.newer;
  entries_[entry.newer].older = entry.older;
  --num_unused_;
}

int32_t PrefixIndex::Evict() {
  if (num_unused_ == 0) return kNone;
  const int32_t page = entries_.back().newer;
  SetUsed(page);
  Entry& entry = entries_[page];
  int32_t* link = &buckets_[entry.bucket];
  while (*link != page) link = &entries_[*link].next;
  *link = entry.next;
  entry.is_known = false;
  --num_known_;
  return page;
}

void PrefixIndex::Clear() {
  std::fill(buckets_.begin(), buckets_.end(), kNone);
  for (Entry& entry : entries_) entry.is_known = false;
  num_known_ = 0;
}

}  // namespace expertmesh::router
