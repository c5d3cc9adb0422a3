#pragma once

// Ownership of KV cache pages.

#include <cstdint>
#include <vector>

namespace expertmesh::router {

// Hands out page numbers below num_pages. One thread.
class PagePool {
 public:
  explicit PagePool(int64_t num_pages);

  int64_t num_pages() const { return num_pages_; }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }

  // Appends `count` pages to `pages`, or does nothing and returns false where
  // fewer are free.
  bool Allocate(int64_t count, std::vector<int32_t>* pages);

  // Takes all pages back and clears `pages`.
  void Free(std::vector<int32_t>* pages);

 private:
  const int64_t num_pages_;
  std::vector<int32_t> free_;
};

}  // namespace expertmesh::router
