#include "router_service/transport/resolver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>

#include <map>

#include "services/core/mutex.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using Addresses = std::vector<std::string>;
using Answer = absl::StatusOr<Addresses>;

constexpr absl::Duration kPatience = absl::Seconds(30);
constexpr absl::Duration kInterval = absl::Milliseconds(5);

// A name server whose answers tests change while they are asked for. Shared
// with lookups that outlive their resolver.
class FakeNames {
 public:
  void Set(const std::string& host, Answer answer) {
    MutexLock lock(&mutex_);
    answers_.insert_or_assign(host, std::move(answer));
  }
  // Lookups of `host` do not return before Release.
  void Hold(const std::string& host) {
    MutexLock lock(&mutex_);
    held_ = host;
  }
  void Release() {
    MutexLock lock(&mutex_);
    held_.clear();
    changed_.NotifyAll();
  }
  Answer LookUp(const std::string& host) {
    MutexLock lock(&mutex_);
    ++lookups_[host];
    changed_.NotifyAll();
    changed_.Wait(lock, [&] { return held_ != host; });
    const auto found = answers_.find(host);
    if (found == answers_.end()) return absl::NotFoundError("no such name");
    return found->second;
  }
  // Waits for `count` more lookups of `host` to begin; the last but one of them
  // was taken in by then.
  void AwaitLookups(const std::string& host, int count) {
    MutexLock lock(&mutex_);
    const int target = lookups_[host] + count;
    EXPECT_TRUE(changed_.WaitFor(lock, kPatience,
                                 [&] { return lookups_[host] >= target; }));
  }

  // Waits for the first lookup of `host` to begin.
  void AwaitLookup(const std::string& host) {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(
        changed_.WaitFor(lock, kPatience, [&] { return lookups_[host] > 0; }));
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::map<std::string, Answer> answers_;
  std::map<std::string, int> lookups_;
  std::string held_;
};

class ResolverTest : public ::testing::Test {
 protected:
  // The pool whose addresses are those of `host`.
  Resolver::Source Source(const std::string& pool, const std::string& host) {
    return {.pool = pool, .name = host, .lookup = [names = names_, host] {
              return names->LookUp(host);
            }};
  }
  void Start(std::vector<Resolver::Source> sources) {
    Resolver::Options options;
    options.sources = std::move(sources);
    options.interval = kInterval;
    options.on_change = [this](const std::string& pool,
                               const Addresses& addresses) {
      MutexLock lock(&mutex_);
      ++reports_;
      known_[pool] = addresses;
      changed_.NotifyAll();
    };
    resolver_ = std::make_unique<Resolver>(std::move(options));
  }
  void Await(const std::string& pool, const Addresses& addresses) {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(changed_.WaitFor(lock, kPatience, [&] {
      return known_[pool] == addresses;
    })) << pool;
  }
  int reports() {
    MutexLock lock(&mutex_);
    return reports_;
  }

  const std::shared_ptr<FakeNames> names_ = std::make_shared<FakeNames>();
  Mutex mutex_;
  CondVar changed_;
  int reports_ = 0;
  std::map<std::string, Addresses> known_;
  std::unique_ptr<Resolver> resolver_;
};

TEST_F(ResolverTest, ReportsAddressesAndTheirChanges) {
  names_->Set("n", Addresses{"b:1", "a:1", "b:1"});
  Start({Source("p", "n")});
  Await("p", {"a:1", "b:1"});
  names_->Set("n", Addresses{"a:1", "[::1]:1"});
  Await("p", {"[::1]:1", "a:1"});
  EXPECT_EQ(reports(), 2);
}

TEST_F(ResolverTest, AnotherOrderIsNoChange) {
  names_->Set("n", Addresses{"a:1", "b:1"});
  Start({Source("p", "n")});
  Await("p", {"a:1", "b:1"});
  names_->Set("n", Addresses{"b:1", "a:1"});
  names_->AwaitLookups("n", 3);
  EXPECT_EQ(reports(), 1);
}

TEST_F(ResolverTest, KeepsTheLastAddressesOfANameThatIsBad) {
  prometheus::Registry registry;
  auto& family = prometheus::BuildCounter().Name("n_total").Register(registry);
  Resolver::Source source = Source("p", "n");
  for (size_t i = 0; i < kNumResolutionOutcomes; ++i) {
    const auto outcome = static_cast<ResolutionOutcome>(i);
    source.resolutions[i] =
        &family.Add({{"outcome", std::string(ResolutionOutcomeName(outcome))}});
  }
  // Not there yet when the router starts.
  Start({source});
  names_->AwaitLookups("n", 2);
  EXPECT_EQ(reports(), 0);
  EXPECT_GE(source.resolutions[1]->Value(), 1);
  names_->Set("n", Addresses{"a:1"});
  Await("p", {"a:1"});
  EXPECT_GE(source.resolutions[0]->Value(), 1);

  names_->Set("n", absl::UnavailableError("no server"));
  names_->AwaitLookups("n", 3);
  EXPECT_GE(source.resolutions[2]->Value(), 1);
  const double empty_before = source.resolutions[1]->Value();
  names_->Set("n", absl::NotFoundError("it says nothing"));
  names_->AwaitLookups("n", 3);
  EXPECT_GT(source.resolutions[1]->Value(), empty_before);
  EXPECT_EQ(reports(), 1);

  names_->Set("n", Addresses{"b:1"});
  Await("p", {"b:1"});
}

TEST_F(ResolverTest, ASourceMaySayThatThereIsNone) {
  names_->Set("n", Addresses{"a:1"});
  Start({Source("p", "n")});
  Await("p", {"a:1"});
  names_->Set("n", Addresses());
  Await("p", {});
  EXPECT_EQ(reports(), 2);
}

TEST_F(ResolverTest, ASlowNameHoldsUpNoOther) {
  names_->Set("slow", Addresses{"a:1"});
  names_->Set("quick", Addresses{"b:2"});
  names_->Hold("slow");
  Start({Source("s", "slow"), Source("q", "quick")});
  Await("q", {"b:2"});
  names_->Set("quick", Addresses{"c:2"});
  Await("q", {"c:2"});
  EXPECT_EQ(reports(), 2);
  names_->Release();
  Await("s", {"a:1"});
}

TEST_F(ResolverTest, EndsWhileALookupHangs) {
  names_->Set("slow", Addresses{"a:1"});
  names_->Hold("slow");
  Start({Source("s", "slow")});
  names_->AwaitLookup("slow");
  resolver_.reset();
  names_->Release();
  EXPECT_EQ(reports(), 0);
}

TEST(LookUpAddresses, TakesBothFamiliesInNumericForm) {
  EXPECT_THAT(*LookUpAddresses({"127.0.0.1", 80}), ElementsAre("127.0.0.1:80"));
  EXPECT_THAT(*LookUpAddresses({"::1", 80}), ElementsAre("[::1]:80"));
}

}  // namespace
}  // namespace expertmesh::router
