#pragma once

// Ownership of KV cache pages.

#include <cstdint>
#include <vector>

namespace expertmesh::router {

// Hands out page numbers below num_pages and counts who uses each. A page whose
// last user has gone is neither used nor free until Free says so: what it holds
// may be worth keeping. One thread; allocates nothing after construction.
class PagePool {
 public:
  explicit PagePool(int64_t num_pages);

  int64_t num_pages() const { return static_cast<int64_t>(users_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }

  // A free page, which has one user from now on. Requires num_free() > 0.
  int32_t Take();

  // Another user of a page that is not free.
  void AddUser(int32_t page) { ++users_[page]; }
  // One user less; true where that was the last.
  bool RemoveUser(int32_t page) { return --users_[page] == 0; }

  // Takes back a page without users.
  void Free(int32_t page) { free_.push_back(page); }

 private:
  std::vector<int32_t> users_;  // [num_pages]
  std::vector<int32_t> free_;
};

}  // namespace expertmesh::router
