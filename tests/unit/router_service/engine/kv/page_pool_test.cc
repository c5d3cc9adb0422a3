#include "router_service/engine/kv/page_pool.h"

#include <gtest/gtest.h>

namespace expertmesh::router {
namespace {

TEST(PagePoolTest, HandsOutPagesFromZero) {
  PagePool pool(3);
  EXPECT_EQ(pool.num_pages(), 3);
  EXPECT_EQ(pool.Take(), 0);
  EXPECT_EQ(pool.Take(), 1);
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(PagePoolTest, APageIsFreeOnlyOnceItIsGivenBack) {
  PagePool pool(2);
  const int32_t page = pool.Take();
  pool.AddUser(page);
  EXPECT_FALSE(pool.RemoveUser(page));
  EXPECT_TRUE(pool.RemoveUser(page));
  EXPECT_EQ(pool.num_free(), 1);
  pool.Free(page);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.Take(), page);
  EXPECT_TRUE(pool.RemoveUser(page)) << "whoever takes it is the only user";
}

}  // namespace
}  // namespace expertmesh::router
