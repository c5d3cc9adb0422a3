#include "router_service/engine/kv/page_pool.h"

namespace expertmesh::router {

PagePool::PagePool(int64_t num_pages) : num_pages_(num_pages) {
  free_.reserve(num_pages);
  // Reversed, so that pages are handed out from 0: untouched memory of a large
  // pool stays untouched.
  for (int64_t page = num_pages - 1; page >= 0; --page) {
    free_.push_back(static_cast<int32_t>(page));
  }
}

bool PagePool::Allocate(int64_t count, std::vector<int32_t>* pages) {
  if (count > num_free()) return false;
  for (int64_t i = 0; i < count; ++i) {
    pages->push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void PagePool::Free(std::vector<int32_t>* pages) {
  free_.insert(free_.end(), pages->rbegin(), pages->rend());
  pages->clear();
}

}  // namespace expertmesh::router
