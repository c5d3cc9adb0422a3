#include "router_service/transport/endpoint_set.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/log.h"

namespace expertmesh::router {
namespace {

void ForgetAnnouncement(EndpointInfo* info) {
  EndpointInfo empty;
  empty.index = info->index;
  empty.pool = std::move(info->pool);
  empty.address = std::move(info->address);
  *info = std::move(empty);
}

bool IsInUse(const EndpointInfo& info) {
  return info.state == EndpointState::kReady ||
         info.state == EndpointState::kDraining;
}

}  // namespace

EndpointSet::EndpointSet(Options options) : options_(std::move(options)) {
  GrpcExpertTransport::Options transport;
  transport.metrics = options_.metrics;
  transport.shared_memory = options_.shared_memory;
  transport.tls = options_.tls;
  transport.on_stream_change = [this](int index, const absl::Status& status) {
    OnStreamChange(index, status);
  };
  transport.on_gone = [this](int index) {
    LetGo(index, [](Endpoint& endpoint) { endpoint.has_connection = false; });
  };
  transport_ = std::make_unique<GrpcExpertTransport>(std::move(transport));
  timer_ = std::make_unique<WakeTimer>(
      [this](absl::Duration now) { return Sweep(now); });
  MutexLock lock(&publish_mutex_);
  Publish();
}

EndpointSet::~EndpointSet() {
  {
    MutexLock lock(&publish_mutex_);
    is_stopping_ = true;
  }
  std::vector<std::shared_ptr<StateWatch>> watches;
  {
    MutexLock lock(&mutex_);
    for (const auto& [index, endpoint] : endpoints_) {
      if (endpoint.watch != nullptr) watches.push_back(endpoint.watch);
    }
  }
  for (const auto& watch : watches) watch->Shutdown();
  timer_.reset();
  transport_.reset();
}

std::vector<EndpointInfo> EndpointSet::Snapshot() const {
  std::vector<EndpointInfo> snapshot;
  MutexLock lock(&mutex_);
  for (const auto& [index, endpoint] : endpoints_) {
    snapshot.push_back(endpoint.info);
    snapshot.back().inflight_rows = transport_->inflight_rows(index);
  }
  return snapshot;
}

// --- Membership. -----------------------------------------------------------

void EndpointSet::SetAddresses(const std::string& pool,
                               const std::vector<std::string>& addresses) {
  MutexLock lock(&publish_mutex_);
  pools_[pool] = addresses;
  Reconcile();
}

std::map<std::string, std::string> EndpointSet::Wanted() const {
  std::map<std::string, std::string> wanted;
  for (const auto& [pool, addresses] : pools_) {
    for (const std::string& address : addresses) {
      const auto [it, is_new] = wanted.emplace(address, pool);
      if (is_new || it->second == pool) continue;
      Log(LogLevel::kWarning, "an address is in two pools; the first keeps it",
          {{"endpoint", address}, {"pool", it->second}, {"other_pool", pool}});
    }
  }
  return wanted;
}

void EndpointSet::Reconcile() {
  if (is_stopping_) return;
  std::map<std::string, std::string> wanted = Wanted();
  std::vector<int> leaving;
  {
    MutexLock lock(&mutex_);
    for (auto& [index, endpoint] : endpoints_) {
      const auto found = wanted.find(endpoint.info.address);
      const bool stays = found != wanted.end() && !endpoint.is_leaving &&
                         found->second == endpoint.info.pool;
      // An address whose endpoint leaves joins when that is gone.
      if (found != wanted.end()) wanted.erase(found);
      if (stays || endpoint.is_leaving) continue;
      const EndpointState before = endpoint.info.state;
      endpoint.is_leaving = true;
      Judge(endpoint);
      Report(before, endpoint);
      leaving.push_back(index);
    }
  }
  if (wanted.empty() && leaving.empty()) return;
  // In the order they were given.
  for (const auto& [pool, addresses] : pools_) {
    for (const std::string& address : addresses) {
      const auto found = wanted.find(address);
      if (found == wanted.end() || found->second != pool) continue;
      wanted.erase(found);
      Join(pool, address);
    }
  }
  // First published, so that no new work finds a stream that closes.
  Publish();
  for (const int index : leaving) transport_->Remove(index);
  timer_->WakeBy(absl::ZeroDuration());
}

void EndpointSet::Join(const std::string& pool, const std::string& address) {
  const int index = transport_->Add(pool, address);
  Log(LogLevel::kInfo, "expert service joins",
      {{"endpoint", address}, {"pool", pool}});
  Endpoint endpoint;
  endpoint.info.index = index;
  endpoint.info.pool = pool;
  endpoint.info.address = address;
  endpoint.watch = MakeWatch(index, address);
  Judge(endpoint);
  MutexLock lock(&mutex_);
  endpoints_.emplace(index, std::move(endpoint));
}

std::shared_ptr<StateWatch> EndpointSet::MakeWatch(int index,
                                                   const std::string& address) {
  StateWatch::Options watch;
  watch.address = address;
  watch.tls = options_.tls;
  watch.interval = options_.watch_interval;
  watch.on_state = [this, index](const expert::v1::EndpointState& state) {
    OnState(index, state);
  };
  watch.on_lost = [this, index](const absl::Status& status) {
    OnWatchLost(index, status);
  };
  watch.wake_by = [this](absl::Duration time) { timer_->WakeBy(time); };
  return std::make_shared<StateWatch>(std::move(watch));
}

absl::Duration EndpointSet::Sweep(absl::Duration now) {
  std::vector<std::shared_ptr<StateWatch>> watches;
  std::vector<std::pair<int, std::shared_ptr<StateWatch>>> leaving;
  {
    MutexLock lock(&mutex_);
    for (const auto& [index, endpoint] : endpoints_) {
      if (endpoint.watch == nullptr) continue;
      if (endpoint.is_leaving) {
        leaving.emplace_back(index, endpoint.watch);
      } else {
        watches.push_back(endpoint.watch);
      }
    }
  }
  for (const auto& [index, watch] : leaving) {
    watch->Shutdown();
    // Only now, so that whoever destroys this set waits for it as well.
    LetGo(index, [](Endpoint& endpoint) { endpoint.watch = nullptr; });
  }
  absl::Duration next = absl::InfiniteDuration();
  for (const auto& watch : watches) next = std::min(next, watch->Sweep(now));
  return next;
}

void EndpointSet::LetGo(int index, absl::FunctionRef<void(Endpoint&)> change) {
  MutexLock publishing(&publish_mutex_);
  if (is_stopping_) return;
  {
    MutexLock lock(&mutex_);
    Endpoint& endpoint = endpoints_.at(index);
    change(endpoint);
    if (endpoint.has_connection || endpoint.watch != nullptr) return;
    Log(LogLevel::kInfo, "expert service has left",
        {{"endpoint", endpoint.info.address}, {"pool", endpoint.info.pool}});
    endpoints_.erase(index);
  }
  Publish();
  // Its address may be wanted again.
  Reconcile();
}

// --- What endpoints do. ----------------------------------------------------

void EndpointSet::OnStreamChange(int index, const absl::Status& status) {
  const absl::Status why =
      status.ok() ? absl::UnavailableError("is asked anew") : status;
  std::shared_ptr<StateWatch> outdated;
  Update(index, [&](Endpoint& endpoint) {
    const bool was_open = std::exchange(endpoint.is_stream_open, status.ok());
    endpoint.stream_error = std::string(status.message());
    const bool is_outdated = was_open || (status.ok() && IsAccepted(endpoint));
    if (!is_outdated) return;
    endpoint.is_watched = false;
    endpoint.watch_error = std::string(why.message());
    ForgetAnnouncement(&endpoint.info);
    outdated = endpoint.watch;
  });
  // Whoever answers at this address now, or next, may be another service than
  // the one that spoke.
  if (outdated != nullptr) outdated->Restart(why);
}

void EndpointSet::OnState(int index, const expert::v1::EndpointState& state) {
  Update(index, [&](Endpoint& endpoint) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    endpoint.is_watched = true;
    endpoint.is_draining = state.draining();
    endpoint.refusal = CheckAnnouncement(IdentityFor(index), state);
    ForgetAnnouncement(&endpoint.info);
    if (endpoint.refusal.has_value()) return;
    const std::string other = OtherAddressOf(index, state.instance_id());
    if (other.empty()) return ReadAnnouncement(state, &endpoint.info);
    endpoint.info.duplicate_of = other;
    endpoint.refusal =
        Refusal{RefusalReason::kDuplicate,
                absl::StrCat("is the service at ", other,
                             ", which is in use; name it by one address")};
  });
  ReportLoad(index, state);
}

void EndpointSet::ReportLoad(int index,
                             const expert::v1::EndpointState& state) {
  if (!options_.on_load) return;
  std::string address;
  {
    MutexLock lock(&mutex_);
    const auto found = endpoints_.find(index);
    if (found == endpoints_.end() || found->second.refusal.has_value()) return;
    address = found->second.info.address;
  }
  options_.on_load(address, ReadLoad(state));
}

ModelIdentity EndpointSet::IdentityFor(int index) const {
  ModelIdentity identity = options_.model;
  if (!identity.expert_dtype.empty()) return identity;
  for (const auto& [other, endpoint] : endpoints_) {
    if (other == index || !IsAccepted(endpoint)) continue;
    identity.expert_dtype = endpoint.info.expert_dtype;
    break;
  }
  return identity;
}

std::string EndpointSet::OtherAddressOf(int index, uint64_t instance_id) const {
  if (instance_id == 0) return "";
  for (const auto& [other, endpoint] : endpoints_) {
    if (other == index || !IsAccepted(endpoint)) continue;
    if (endpoint.info.instance_id == instance_id) return endpoint.info.address;
  }
  return "";
}

bool EndpointSet::IsAccepted(const Endpoint& endpoint) {
  return endpoint.is_watched && !endpoint.is_leaving &&
         !endpoint.refusal.has_value();
}

void EndpointSet::OnWatchLost(int index, const absl::Status& status) {
  Update(index, [&](Endpoint& endpoint) {
    endpoint.is_watched = false;
    endpoint.watch_error = std::string(status.message());
    ForgetAnnouncement(&endpoint.info);
  });
}

void EndpointSet::Judge(Endpoint& endpoint) {
  EndpointInfo& info = endpoint.info;
  info.state = EndpointState::kConnecting;
  info.reason.clear();
  if (endpoint.is_leaving) {
    info.state = EndpointState::kLeaving;
    info.reason = "its address is not the pool's any more";
  } else if (!endpoint.is_watched) {
    info.reason = endpoint.watch_error;
  } else if (endpoint.refusal.has_value()) {
    info.state = EndpointState::kRefused;
    info.reason = endpoint.refusal->message;
  } else if (!endpoint.is_stream_open) {
    info.reason = endpoint.stream_error;
  } else {
    info.state =
        endpoint.is_draining ? EndpointState::kDraining : EndpointState::kReady;
  }
}

void EndpointSet::Update(int index, absl::FunctionRef<void(Endpoint&)> change) {
  MutexLock publishing(&publish_mutex_);
  if (is_stopping_) return;
  {
    MutexLock lock(&mutex_);
    const auto found = endpoints_.find(index);
    if (found == endpoints_.end()) return;
    Endpoint& endpoint = found->second;
    EndpointInfo before = endpoint.info;
    change(endpoint);
    Judge(endpoint);
    before.queue_rows = endpoint.info.queue_rows;
    before.credit_rows = endpoint.info.credit_rows;
    before.served_rows = endpoint.info.served_rows;
    before.busy_us = endpoint.info.busy_us;
    if (before == endpoint.info) return;
    Report(before.state, endpoint);
  }
  Publish();
}

void EndpointSet::Report(EndpointState before, const Endpoint& endpoint) const {
  const EndpointInfo& info = endpoint.info;
  if (before == info.state) return;
  const bool is_refused = info.state == EndpointState::kRefused;
  const bool is_expected =
      IsInUse(info) || info.state == EndpointState::kLeaving;
  Log(is_expected ? LogLevel::kInfo : LogLevel::kWarning,
      is_refused ? "expert service is refused"
                 : "expert service changed its state",
      {{"endpoint", info.address},
       {"pool", info.pool},
       {"state", EndpointStateName(info.state)},
       {"reason", info.reason},
       {"slots", info.hosted.size()}});
  if (!is_refused) return;
  prometheus::Counter* const counter = MetricAt(
      options_.metrics.refused, static_cast<size_t>(endpoint.refusal->reason));
  if (counter != nullptr) counter->Increment();
}

void EndpointSet::Publish() {
  const std::vector<EndpointInfo> snapshot = Snapshot();
  std::array<int, kNumEndpointStates> counts = {};
  for (const EndpointInfo& info : snapshot) {
    ++counts[static_cast<size_t>(info.state)];
  }
  for (size_t s = 0; s < kNumEndpointStates; ++s) {
    prometheus::Gauge* gauge = MetricAt(options_.metrics.endpoints, s);
    if (gauge != nullptr) gauge->Set(counts[s]);
  }
  if (options_.on_change) options_.on_change(snapshot);
}

}  // namespace expertmesh::router
