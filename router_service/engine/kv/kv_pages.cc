#include "router_service/engine/kv/kv_pages.h"

namespace expertmesh::router {

KvPages::KvPages(int64_t num_pages, bool keeps_prefixes)
    : keeps_prefixes_(keeps_prefixes),
      pool_(num_pages),
      index_(keeps_prefixes ? num_pages : 0) {}

int64_t KvPages::TakePrefix(absl::Span<const int32_t> tokens,
                            std::vector<int32_t>* pages, int32_t root) {
  if (!keeps_prefixes_) return 0;
  int64_t found = 0;
  int32_t page = root;
  while (found + kPageTokens <= static_cast<int64_t>(tokens.size())) {
    page = index_.Find(page, tokens.subspan(found, kPageTokens));
    if (page == PrefixIndex::kNone) break;
    pool_.AddUser(page);
    index_.SetUsed(page);
    pages->push_back(page);
    found += kPageTokens;
  }
  return found;
}

void KvPages::CountLookup(int64_t num_tokens, int64_t num_found) {
  if (!keeps_prefixes_) return;
  counts_.lookup_tokens += num_tokens;
  counts_.hit_tokens += num_found;
}

bool KvPages::Allocate(int64_t count, std::vector<int32_t>* pages) {
  if (count > num_available()) return false;
  while (pool_.num_free() < count) {
    pool_.Free(index_.Evict());
    ++counts_.evicted_pages;
  }
  for (int64_t i = 0; i < count; ++i) pages->push_back(pool_.Take());
  return true;
}

void KvPages::Release(std::vector<int32_t>* pages) {
  // Backwards, so that no page stays behind its parent.
  for (auto page = pages->rbegin(); page != pages->rend(); ++page) {
    if (!pool_.RemoveUser(*page)) continue;
    if (keeps_prefixes_ && index_.Knows(*page)) {
      index_.SetUnused(*page);
    } else {
      pool_.Free(*page);
    }
  }
  pages->clear();
}

void KvPages::Share(absl::Span<const int32_t> tokens, int64_t index,
                    std::vector<int32_t>* pages, int32_t root) {
  if (!keeps_prefixes_) return;
  int32_t parent = root;
  if (index > 0) {
    parent = (*pages)[index - 1];
    if (!index_.Knows(parent)) return;  // it was forgotten
  }
  int32_t& page = (*pages)[index];
  const int32_t known = index_.Find(parent, tokens);
  if (known == PrefixIndex::kNone) {
    index_.Insert(parent, tokens, page);
  } else if (known != page) {
    pool_.AddUser(known);
    index_.SetUsed(known);
    if (pool_.RemoveUser(page)) pool_.Free(page);
    page = known;
  }
}

void KvPages::Forget() {
  if (!keeps_prefixes_) return;
  while (index_.num_unused() > 0) pool_.Free(index_.Evict());
  index_.Clear();
}

}  // namespace expertmesh::router
