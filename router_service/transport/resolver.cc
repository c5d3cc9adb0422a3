#include "router_service/transport/resolver.h"

#include <errno.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "services/core/clock.h"
#include "services/core/log.h"
#include "services/core/mutex.h"

namespace expertmesh::router {
namespace {

// Between two lines about a name that stays bad.
constexpr absl::Duration kLogInterval = absl::Minutes(1);

absl::Status LookupError(const HostPort& name, int error) {
  return absl::UnavailableError(absl::StrCat(
      "cannot look up ", name.host, ": ",
      error == EAI_SYSTEM ? std::strerror(errno) : gai_strerror(error)));
}

bool MeansNoAddress(int error) {
  return error == EAI_NONAME || error == EAI_NODATA || error == EAI_ADDRFAMILY;
}

}  // namespace

absl::string_view ResolutionOutcomeName(ResolutionOutcome outcome) {
  constexpr std::array<absl::string_view, kNumResolutionOutcomes> kNames = {
      "resolved", "empty", "failed"};
  return kNames[static_cast<size_t>(outcome)];
}

absl::StatusOr<std::vector<std::string>> LookUpAddresses(const HostPort& name) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(name.host.c_str(), nullptr, &hints, &found);
  if (MeansNoAddress(error)) {
    return absl::NotFoundError(absl::StrCat(name.host, " has no address"));
  }
  if (error != 0) return LookupError(name, error);
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found,
                                                             freeaddrinfo);
  std::vector<std::string> addresses;
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    char numeric[NI_MAXHOST];
    const int failed = getnameinfo(info->ai_addr, info->ai_addrlen, numeric,
                                   sizeof(numeric), nullptr, 0, NI_NUMERICHOST);
    if (failed != 0) return LookupError(name, failed);
    addresses.push_back(HostPort{numeric, name.port}.ToString());
  }
  return addresses;
}

// What the resolver and its threads have in common; the last of them frees it.
struct Resolver::Shared {
  explicit Shared(Options given) : options(std::move(given)) {}

  const Options options;
  // Held while the callback runs.
  Mutex mutex;
  CondVar stopping;
  bool is_stopped ABSL_GUARDED_BY(mutex) = false;
};

namespace {

ResolutionOutcome OutcomeOf(const absl::Status& status) {
  if (status.ok()) return ResolutionOutcome::kResolved;
  return absl::IsNotFound(status) ? ResolutionOutcome::kEmpty
                                  : ResolutionOutcome::kFailed;
}

// What is known of one source, by its thread alone.
class SourceState {
 public:
  explicit SourceState(const Resolver::Source& source) : source_(source) {}

  // Takes in what a lookup said; true when the addresses changed.
  bool Update(absl::StatusOr<std::vector<std::string>> answer) {
    const ResolutionOutcome outcome = OutcomeOf(answer.status());
    prometheus::Counter* const counter =
        source_.resolutions[static_cast<size_t>(outcome)];
    if (counter != nullptr) counter->Increment();
    LogOutcome(answer.status());
    if (!answer.ok()) return false;
    std::sort(answer->begin(), answer->end());
    answer->erase(std::unique(answer->begin(), answer->end()), answer->end());
    if (*answer == addresses_) return false;
    addresses_ = *std::move(answer);
    return true;
  }

  const std::vector<std::string>& addresses() const { return addresses_; }

 private:
  void LogOutcome(const absl::Status& status) {
    const absl::Duration now = Clock::Real()->Now();
    const bool changed = std::exchange(was_good_, status.ok()) != status.ok();
    if (!changed && (status.ok() || now < log_next_)) return;
    log_next_ = now + kLogInterval;
    if (status.ok()) {
      Log(LogLevel::kInfo, "a pool's name resolves again",
          {{"pool", source_.pool}, {"name", source_.name}});
    } else {
      Log(LogLevel::kWarning,
          "a pool's name does not resolve; its last addresses are kept",
          {{"pool", source_.pool},
           {"name", source_.name},
           {"reason", status.message()},
           {"addresses", addresses_.size()}});
    }
  }

  const Resolver::Source& source_;
  std::vector<std::string> addresses_;
  bool was_good_ = true;
  absl::Duration log_next_ = absl::ZeroDuration();
};

}  // namespace

Resolver::Resolver(Options options)
    : shared_(std::make_shared<Shared>(std::move(options))) {
  for (const Source& source : shared_->options.sources) {
    std::thread([shared = shared_, &source] {
      Follow(*shared, source);
    }).detach();
  }
}

void Resolver::Follow(Shared& shared, const Source& source) {
  const Options& options = shared.options;
  SourceState state(source);
  while (true) {
    const absl::Duration next = Clock::Real()->Now() + options.interval;
    auto answer = source.lookup();
    MutexLock lock(&shared.mutex);
    // First: what the counters and the callback refer to may be gone already.
    if (shared.is_stopped) return;
    if (state.Update(std::move(answer))) {
      options.on_change(source.pool, state.addresses());
    }
    const absl::Duration pause =
        std::max(next - Clock::Real()->Now(), absl::ZeroDuration());
    shared.stopping.WaitFor(lock, pause, [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return shared.is_stopped;
    });
    if (shared.is_stopped) return;
  }
}

Resolver::~Resolver() {
  MutexLock lock(&shared_->mutex);
  shared_->is_stopped = true;
  shared_->stopping.NotifyAll();
}

}  // namespace expertmesh::router
