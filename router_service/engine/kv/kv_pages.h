#pragma once

// The KV cache's pages as sequences see them: allotted, shared, kept.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "router_service/engine/kv/page_pool.h"
#include "router_service/engine/kv/prefix_index.h"

namespace expertmesh::router {

// Pages a number of tokens takes.
inline int64_t PagesFor(int64_t num_tokens) {
  return (num_tokens + kPageTokens - 1) / kPageTokens;
}

// Gives pages to sequences. Full pages that were shared are found by later
// sequences with the same prefix, and stay after their last user until others
// need the room. A sequence's list of pages is in order of position, and what
// it has shared or found is at the front of it. One thread.
class KvPages {
 public:
  // Since the start.
  struct Counts {
    int64_t lookup_tokens = 0;  // of sequences that were admitted
    int64_t hit_tokens = 0;     // of these, found
    int64_t evicted_pages = 0;
  };

  // Without `keeps_prefixes`, nothing is shared or kept.
  KvPages(int64_t num_pages, bool keeps_prefixes);

  bool keeps_prefixes() const { return keeps_prefixes_; }
  int64_t num_pages() const { return pool_.num_pages(); }
  // Those that no sequence uses, kept ones among them.
  int64_t num_available() const {
    return pool_.num_free() + index_.num_unused();
  }
  int64_t num_kept() const { return index_.num_known(); }
  const Counts& counts() const { return counts_; }

  // Gives an empty list the pages of the longest known prefix of `tokens`.
  // Returns the tokens they hold.
  //   root  of PrefixIndex: what was shared below it is found
  int64_t TakePrefix(absl::Span<const int32_t> tokens,
                     std::vector<int32_t>* pages,
                     int32_t root = PrefixIndex::kRoot);
  // For the counts: a sequence was admitted with so many of its tokens found.
  void CountLookup(int64_t num_tokens, int64_t num_found);

  // Appends `count` pages, evicting what nobody uses; or does nothing and
  // returns false where fewer are available.
  bool Allocate(int64_t count, std::vector<int32_t>* pages);

  // Gives all pages back and clears the list.
  void Release(std::vector<int32_t>* pages);

  // Lets others find a page of a list: number `index`, full and computed, whose
  // predecessors have been shared already. Where the same tokens are known
  // already, the list gets that page for its own, which holds the same bits,
  // or what is as good below kMixedRoot.
  //   tokens  [kPageTokens] of the page
  //   root    as of TakePrefix
  void Share(absl::Span<const int32_t> tokens, int64_t index,
             std::vector<int32_t>* pages, int32_t root = PrefixIndex::kRoot);

  // Nothing computed so far is found any more.
  void Forget();

 private:
  const bool keeps_prefixes_;
  PagePool pool_;
  PrefixIndex index_;
  Counts counts_;
};

}  // namespace expertmesh::router
