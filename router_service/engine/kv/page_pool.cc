#include "router_service/engine/kv/page_pool.h"

namespace expertmesh::router {

PagePool::PagePool(int64_t num_pages) : users_(num_pages) {
  free_.reserve(num_pages);
  // Reversed, so that pages are handed out from 0: untouched memory of a large
  // pool stays untouched.
  for (int64_t page = num_pages - 1; page >= 0; --page) {
    free_.push_back(static_cast<int32_t>(page));
  }
}

int32_t PagePool::Take() {
  const int32_t page = free_.back();
  free_.pop_back();
  users_[page] = 1;
  return page;
}

}  // namespace expertmesh::router
