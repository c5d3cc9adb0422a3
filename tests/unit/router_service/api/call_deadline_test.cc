#include "router_service/api/call_deadline.h"

#include <gtest/gtest.h>

namespace expertmesh::router {
namespace {

const absl::Time kArrival = absl::FromUnixSeconds(1'000'000);

// The code for a client that leaves `before` a deadline of `timeout`.
absl::StatusCode CodeOf(absl::Duration timeout, absl::Duration before) {
  const absl::Time deadline = kArrival + timeout;
  return ClientGone({kArrival, deadline}, deadline - before).code();
}

TEST(CallDeadlineTest, TheDeadlineIsTheDeadline) {
  EXPECT_EQ(CodeOf(absl::Seconds(1), absl::ZeroDuration()),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(CodeOf(absl::Seconds(1), -absl::Seconds(1)),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(CallDeadlineTest, AClientsClockMayRunOutFirst) {
  EXPECT_EQ(CodeOf(absl::Seconds(1), absl::Milliseconds(19)),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(CodeOf(absl::Seconds(1), absl::Milliseconds(21)),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(CodeOf(absl::Seconds(100), absl::Milliseconds(990)),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(CodeOf(absl::Seconds(100), absl::Milliseconds(1010)),
            absl::StatusCode::kCancelled);
}

TEST(CallDeadlineTest, WithoutADeadlineAClientCancels) {
  for (const absl::Time never :
       {absl::InfiniteFuture(),
        absl::FromChrono(std::chrono::system_clock::time_point::max())}) {
    EXPECT_EQ(ClientGone({kArrival, never}, kArrival + absl::Hours(1)).code(),
              absl::StatusCode::kCancelled);
  }
}

}  // namespace
}  // namespace expertmesh::router
