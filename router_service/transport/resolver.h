#pragma once

// The addresses of pools, looked up again and again.

#include <prometheus/counter.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/runtime/address.h"

namespace expertmesh::router {

enum class ResolutionOutcome {
  kResolved,
  kEmpty,   // the name does not exist or has no address; the file says nothing
  kFailed,  // nobody could tell
};
constexpr size_t kNumResolutionOutcomes = 3;

// "resolved", "empty", "failed": values of the metric's label.
absl::string_view ResolutionOutcomeName(ResolutionOutcome outcome);

// expertmesh_router_resolutions_total of a pool, by ResolutionOutcome; null:
// not counted. Owned by the registry, which outlives the resolver.
using ResolutionCounters =
    std::array<prometheus::Counter*, kNumResolutionOutcomes>;

// All IPv4 and IPv6 addresses of a name, each as "address:port", in any order.
// Blocks as long as the system's resolver does. Errors: NOT_FOUND where the
// name does not exist or has none, UNAVAILABLE when it could not tell.
absl::StatusOr<std::vector<std::string>> LookUpAddresses(const HostPort& name);

// Looks up the addresses of every source once per interval, and reports them
// when they are first known and when they change. A source that fails keeps the
// last ones it had: a name server in trouble must not take down services that
// are well.
//
// The system's lookup blocks, for half a minute where a name server is silent,
// and cannot be cancelled. So each source has a thread of its own, and a lookup
// under way is left behind, to end by itself, when the resolver goes.
class Resolver {
 public:
  // Where the addresses of a pool are found.
  struct Source {
    std::string pool;
    std::string name;  // for people: a host, a path
    // Says what the addresses are now, as "host:port" in any order. Errors:
    // NOT_FOUND is counted as empty, any other as failed. Called from the
    // source's thread; what it refers to must live until it returns, which may
    // be after the resolver.
    std::function<absl::StatusOr<std::vector<std::string>>()> lookup;
    ResolutionCounters resolutions = {};
  };

  struct Options {
    std::vector<Source> sources;
    // From the start of one lookup to the start of the next.
    absl::Duration interval = absl::Seconds(2);
    // Hears the addresses of a pool, ascending, one call at a time, on threads
    // of the resolver.
    std::function<void(const std::string& pool,
                       const std::vector<std::string>& addresses)>
        on_change;
  };

  // Begins at once.
  explicit Resolver(Options options);
  // No callback runs any more when it returns.
  ~Resolver();

  Resolver(const Resolver&) = delete;
  Resolver& operator=(const Resolver&) = delete;

 private:
  struct Shared;

  static void Follow(Shared& shared, const Source& source);

  const std::shared_ptr<Shared> shared_;
};

}  // namespace expertmesh::router
