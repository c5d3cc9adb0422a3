#include "router_service/transport/endpoint_set.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router_service/transport/endpoint_announcement.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/runtime/address.h"

namespace expertmesh::router {
namespace {

absl::Status CheckAddresses(const std::vector<std::string>& addresses) {
  if (addresses.empty()) {
    return absl::InvalidArgumentError("no expert service is given");
  }
  std::set<std::string> seen;
  for (const std::string& address : addresses) {
    ASSIGN_OR_RETURN(const HostPort parsed, ParseHostPort(address));
    if (parsed.port == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("expert service ", address, " needs a port"));
    }
    if (!seen.insert(parsed.ToString()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("expert service ", address, " is given twice"));
    }
  }
  return absl::OkStatus();
}

void ForgetAnnouncement(EndpointInfo* info) {
  EndpointInfo empty;
  empty.address = std::move(info->address);
  *info = std::move(empty);
}

void LogTransition(const EndpointInfo& info) {
  const bool is_good = info.state == EndpointState::kReady ||
                       info.state == EndpointState::kDraining;
  Log(is_good ? LogLevel::kInfo : LogLevel::kWarning,
      "expert service changed its state",
      {{"endpoint", info.address},
       {"state", EndpointStateName(info.state)},
       {"reason", info.reason},
       {"slots", info.hosted.size()}});
}

}  // namespace

absl::string_view EndpointStateName(EndpointState state) {
  constexpr std::array<absl::string_view, kNumEndpointStates> kNames = {
      "connecting", "ready", "draining", "refused"};
  return kNames[static_cast<size_t>(state)];
}

absl::StatusOr<std::unique_ptr<EndpointSet>> EndpointSet::Create(
    Options options) {
  RETURN_IF_ERROR(CheckAddresses(options.addresses));
  std::unique_ptr<EndpointSet> set(new EndpointSet(std::move(options)));
  set->Start();
  return set;
}

EndpointSet::EndpointSet(Options options) : options_(std::move(options)) {
  GrpcExpertTransport::Options transport;
  transport.addresses = options_.addresses;
  transport.metrics = options_.metrics;
  transport.on_stream_change = [this](int endpoint,
                                      const absl::Status& status) {
    OnStreamChange(static_cast<size_t>(endpoint), status);
  };
  transport_ = std::make_unique<GrpcExpertTransport>(std::move(transport));
  for (size_t i = 0; i < options_.addresses.size(); ++i) {
    endpoints_.emplace_back().info.address = options_.addresses[i];
    Judge(endpoints_.back());
    StateWatch::Options watch;
    watch.address = options_.addresses[i];
    watch.interval = options_.watch_interval;
    watch.on_state = [this, i](const expert::v1::EndpointState& state) {
      OnState(i, state);
    };
    watch.on_lost = [this, i](const absl::Status& status) {
      OnWatchLost(i, status);
    };
    watch.wake_by = [this](absl::Duration time) { timer_->WakeBy(time); };
    watches_.push_back(std::make_unique<StateWatch>(std::move(watch)));
  }
  timer_ = std::make_unique<WakeTimer>([this](absl::Duration now) {
    absl::Duration next = absl::InfiniteDuration();
    for (const auto& watch : watches_) next = std::min(next, watch->Sweep(now));
    return next;
  });
}

void EndpointSet::Start() {
  {
    MutexLock lock(&publish_mutex_);
    Publish();
  }
  transport_->Start();
  timer_->WakeBy(absl::ZeroDuration());
}

EndpointSet::~EndpointSet() {
  {
    MutexLock lock(&publish_mutex_);
    is_stopping_ = true;
  }
  for (const auto& watch : watches_) watch->Shutdown();
  timer_.reset();
  transport_.reset();
}

std::vector<EndpointInfo> EndpointSet::Snapshot() const {
  std::vector<EndpointInfo> snapshot;
  MutexLock lock(&mutex_);
  for (size_t i = 0; i < endpoints_.size(); ++i) {
    snapshot.push_back(endpoints_[i].info);
    snapshot.back().inflight_rows =
        transport_->inflight_rows(static_cast<int>(i));
  }
  return snapshot;
}

void EndpointSet::OnStreamChange(size_t index, const absl::Status& status) {
  bool was_open = false;
  Update(index, [&](Endpoint& endpoint) {
    was_open = std::exchange(endpoint.is_stream_open, status.ok());
    endpoint.stream_error = std::string(status.message());
    if (!was_open || status.ok()) return;
    endpoint.is_watched = false;
    endpoint.watch_error = endpoint.stream_error;
    ForgetAnnouncement(&endpoint.info);
  });
  // Whoever answers at this address next may be another service.
  if (was_open && !status.ok()) watches_[index]->Restart(status);
}

void EndpointSet::OnState(size_t index,
                          const expert::v1::EndpointState& state) {
  Update(index, [&](Endpoint& endpoint) {
    const absl::Status identity = CheckIdentity(options_.model, state);
    endpoint.is_watched = true;
    endpoint.is_draining = state.draining();
    endpoint.refusal = std::string(identity.message());
    ForgetAnnouncement(&endpoint.info);
    if (identity.ok()) ReadAnnouncement(state, &endpoint.info);
  });
}

void EndpointSet::OnWatchLost(size_t index, const absl::Status& status) {
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
  if (!endpoint.is_watched) {
    info.reason = endpoint.watch_error;
  } else if (!endpoint.refusal.empty()) {
    info.state = EndpointState::kRefused;
    info.reason = endpoint.refusal;
  } else if (!endpoint.is_stream_open) {
    info.reason = endpoint.stream_error;
  } else {
    info.state =
        endpoint.is_draining ? EndpointState::kDraining : EndpointState::kReady;
  }
}

void EndpointSet::Update(size_t index,
                         absl::FunctionRef<void(Endpoint&)> change) {
  MutexLock publishing(&publish_mutex_);
  if (is_stopping_) return;
  EndpointInfo before, after;
  {
    MutexLock lock(&mutex_);
    before = endpoints_[index].info;
    change(endpoints_[index]);
    Judge(endpoints_[index]);
    after = endpoints_[index].info;
  }
  if (before == after) return;
  if (before.state != after.state) LogTransition(after);
  Publish();
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
