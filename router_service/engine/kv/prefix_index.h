#pragma once

// Which page holds the keys and values of which tokens.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "services/linalg/attention.h"

namespace expertmesh::router {

// Finds computed pages by the tokens they were computed from. Keys and values
// of a page depend on all tokens before it too, so a page is known by its
// parent, the page before it, and its own kPageTokens tokens. Both are compared
// on a hit, and so are, from page to page, all tokens of the prefix: a
// collision of hashes costs a comparison and never an answer.
//
// Pages without users are kept in the order in which they lost them, and are
// evicted from the front. Whoever uses a page uses its parent, and lets go of
// the parent last: so pages go before their parents, and none is ever held that
// cannot be found. One thread; allocates nothing after construction.
class PrefixIndex {
 public:
  static constexpr int32_t kNone = -1;  // no page
  // The parent of first pages, and that of pages which services of any
  // numerics_id may have computed: nobody finds the ones below the other.
  static constexpr int32_t kRoot = -1;
  static constexpr int32_t kMixedRoot = -2;

  explicit PrefixIndex(int64_t num_pages);

  // The page of these kPageTokens tokens behind `parent`, or kNone.
  int32_t Find(int32_t parent, absl::Span<const int32_t> tokens) const;

  // Enters a page that has users. Requires: neither the page nor its tokens are
  // known, and the parent is.
  void Insert(int32_t parent, absl::Span<const int32_t> tokens, int32_t page);

  bool Knows(int32_t page) const { return entries_[page].is_known; }
  int64_t num_known() const { return num_known_; }
  int64_t num_unused() const { return num_unused_; }

  // Of a known page: its last user has gone; it has a user again.
  void SetUnused(int32_t page);
  void SetUsed(int32_t page);

  // Forgets the page that has been without users for longest, and returns it;
  // kNone where all have users.
  int32_t Evict();

  // Forgets pages that have users, all of them. Requires num_unused() == 0.
  void Clear();

 private:
  struct Entry {
    bool is_known = false;
    bool is_unused = false;
    int32_t parent = kNone;
    uint32_t bucket = 0;
    int32_t next = kNone;          // in its bucket
    int32_t older = 0, newer = 0;  // in the ring of unused pages
  };

  uint32_t BucketOf(int32_t parent, absl::Span<const int32_t> tokens) const;
  absl::Span<const int32_t> TokensOf(int32_t page) const {
    return absl::MakeConstSpan(tokens_).subspan(page * kPageTokens,
                                                kPageTokens);
  }

  // One for each page, and at the end the ring's own, whose `newer` is the
  // oldest page.
  std::vector<Entry> entries_;
  std::vector<int32_t> buckets_;  // first page of each; a power of two of them
  std::vector<int32_t> tokens_;   // [num_pages, kPageTokens]
  int64_t num_known_ = 0;
  int64_t num_unused_ = 0;
};

}  // namespace expertmesh::router
