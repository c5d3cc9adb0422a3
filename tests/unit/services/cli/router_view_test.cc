#include "services/cli/router_view.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/core/mutex.h"

namespace expertmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A router that knows one service, in one state after the other.
class FakeRouter final : public admin::v1::AdminService::Service {
 public:
  explicit FakeRouter(std::vector<std::string> states)
      : states_(std::move(states)) {}

  grpc::Status ListEndpoints(
      grpc::ServerContext*, const admin::v1::ListEndpointsRequest*,
      admin::v1::ListEndpointsResponse* response) override {
    MutexLock lock(&mutex_);
    if (states_.empty()) return grpc::Status::OK;
    admin::v1::Endpoint& endpoint = *response->add_endpoints();
    endpoint.set_address("h:1");
    endpoint.set_state(states_.front());
    endpoint.set_reason("another model");
    if (states_.size() > 1) states_.erase(states_.begin());
    return grpc::Status::OK;
  }

  grpc::Status DrainEndpoint(grpc::ServerContext* context,
                             const admin::v1::DrainEndpointRequest* request,
                             admin::v1::DrainEndpointResponse*) override {
    {
      MutexLock lock(&mutex_);
      asked_.push_back(absl::StrCat(request->undo() ? "undo " : "drain ",
                                    request->address()));
    }
    if (on_drain) on_drain(context);
    return drained;
  }

  std::vector<std::string> asked() {
    MutexLock lock(&mutex_);
    return asked_;
  }

  grpc::Status drained;
  std::function<void(grpc::ServerContext*)> on_drain;

 private:
  Mutex mutex_;
  std::vector<std::string> states_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> asked_ ABSL_GUARDED_BY(mutex_);
};

class RouterViewTest : public testing::Test {
 protected:
  RouterView& View(std::vector<std::string> states) {
    router_ = std::make_unique<FakeRouter>(std::move(states));
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port);
    builder.RegisterService(router_.get());
    server_ = builder.BuildAndStart();
    view_ = std::make_unique<RouterView>(absl::StrCat("127.0.0.1:", port),
                                         [this](absl::Duration duration) {
                                           absl::SleepFor(duration);
                                           return stopping_.load();
                                         });
    return *view_;
  }

  std::atomic<bool> stopping_ = false;
  std::unique_ptr<FakeRouter> router_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<RouterView> view_;
};

TEST_F(RouterViewTest, DrainsAndTakesBack) {
  RouterView& view = View({"ready"});
  EXPECT_TRUE(view.Drain("h:1").ok());
  view.Undrain("h:1");
  EXPECT_THAT(router_->asked(), ElementsAre("drain h:1", "undo h:1"));
}

TEST_F(RouterViewTest, DrainsNotWhatIsNotInUse) {
  for (const char* state : {"draining", "leaving", "refused"}) {
    EXPECT_TRUE(View({state}).Drain("h:1").ok());
    EXPECT_THAT(router_->asked(), IsEmpty());
  }
  EXPECT_TRUE(View({}).Drain("h:1").ok());
}

// A router that has just restarted; what it alone holds is not known yet.
TEST_F(RouterViewTest, WaitsForAServiceThatConnects) {
  RouterView& view = View({"connecting", "connecting", "ready"});
  router_->drained = {grpc::StatusCode::FAILED_PRECONDITION, "no room"};
  const absl::Status status = view.Drain("h:1");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no room"));
  EXPECT_THAT(router_->asked(), ElementsAre("drain h:1"));
}

TEST_F(RouterViewTest, ADrainEndsWhenTheLauncherStops) {
  RouterView& view = View({"ready"});
  router_->on_drain = [this](grpc::ServerContext* context) {
    stopping_ = true;
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
  };
  EXPECT_TRUE(absl::IsCancelled(view.Drain("h:1")));
}

TEST_F(RouterViewTest, SaysWhyTheRouterRefusesAService) {
  const absl::Status status =
      View({"connecting", "refused"}).AwaitReady({"h:1"});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("another model"));
}

TEST_F(RouterViewTest, ARouterThatIsAwayIsAnErrorOfTheDrain) {
  RouterView& view = View({"ready"});
  router_->drained = {grpc::StatusCode::UNAVAILABLE,
                      "failed to connect to all addresses"};
  const absl::Status status = view.Drain("h:1");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("try again"));
}

}  // namespace
}  // namespace expertmesh
