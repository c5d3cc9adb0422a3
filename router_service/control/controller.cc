#include "router_service/control/controller.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router_service/control/standby.h"
#include "router_service/control/urgent_moves.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

absl::Status Undone() {
  return absl::AbortedError("the drain was taken back before its turn");
}

absl::Status CheckVersion(uint64_t expected, const MeshPlacement& placement) {
  if (expected == placement.version) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("the placement is of version ",
                                         placement.version, ", not ", expected,
                                         " as expected; look at it again"));
}

void Count(const ControllerMetrics& metrics, const absl::Status& status,
           const MovesMade& made) {
  const auto add = [](prometheus::Counter* counter, double value) {
    if (counter != nullptr) counter->Increment(value);
  };
  add(status.ok() ? metrics.changes_done : metrics.changes_failed, 1);
  add(metrics.moves, made.moves);
  add(metrics.loaded_bytes, static_cast<double>(made.bytes_loaded));
}

}  // namespace

Controller::Controller(ControllerOptions options, ExpertOrders* orders,
                       const Clock* clock)
    : options_(std::move(options)),
      orders_(orders),
      mesh_(std::make_shared<MeshState>(options_.mesh, options_.first_version)),
      load_({.num_layers = options_.mesh.num_layers,
             .num_experts = options_.mesh.num_experts,
             .window = options_.load_window},
            clock),
      runner_(mesh_.get(), orders),
      policy_(options_.rebalance, clock),
      thread_([this] { Loop(); }) {}

Controller::~Controller() { Stop(); }

void Controller::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.NotifyAll();
  }
  {
    MutexLock lock(&drain_mutex_);
    may_drain_ = false;
  }
  mesh_->Stop();
  runner_.Stop();
  if (thread_.joinable()) thread_.join();
}

// --- What transport tells. -------------------------------------------------

void Controller::OnEndpoints(const std::vector<EndpointInfo>& endpoints,
                             const std::string& numerics_id) {
  for (const std::string& address : mesh_->Update(endpoints, numerics_id)) {
    load_.Forget(address);
  }
  LogStandby(numerics_id);
}

void Controller::LogStandby(const std::string& numerics_id) {
  std::set<std::string> standby;
  for (const PlacementHost& host : mesh_->placement().hosts) {
    if (!host.managed || !host.stands_by) continue;
    standby.insert(host.id);
    if (logged_standby_.contains(host.id)) continue;
    Log(LogLevel::kWarning,
        "a managed service is left idle: its numerics_id is not the mesh's; "
        "--mix-numerics uses it",
        {{"address", host.id},
         {"pool", host.pool},
         {"numerics_id", host.numerics_id},
         {"mesh", numerics_id}});
  }
  logged_standby_ = std::move(standby);
}

void Controller::OnLoad(const std::string& address, const EndpointLoad& load) {
  std::vector<SlotCounter> counters;
  counters.reserve(load.rows.size());
  for (const SlotRows& slot : load.rows) {
    counters.push_back({{static_cast<int32_t>(slot.slot.layer),
                         static_cast<int32_t>(slot.slot.expert_id)},
                        slot.rows});
  }
  load_.Observe(address, counters, {load.busy_us, load.expert_runs});
}

MeshPlacement Controller::placement() const {
  MeshPlacement placement = mesh_->placement();
  MutexLock lock(&speeds_mutex_);
  speeds_.Update(load_.EndpointWork());
  speeds_.Fill(&placement.hosts);
  return placement;
}

// --- Requests. -------------------------------------------------------------

template <typename Result>
void Controller::Enqueue(std::function<absl::StatusOr<Result>()> work,
                         Done<Result> done) {
  const absl::Status added =
      Add([work = std::move(work), done](const absl::Status& status) {
        if (status.ok()) {
          done(work());
        } else {
          done(status);
        }
      });
  if (!added.ok()) done(added);
}

absl::Status Controller::Add(Request request) {
  MutexLock lock(&mutex_);
  if (stopping_) return Stopping();
  if (requests_.size() >= kMaxRequests) {
    return absl::ResourceExhaustedError(
        "too many requests of placement wait; try again later");
  }
  requests_.push_back(std::move(request));
  wake_.NotifyAll();
  return absl::OkStatus();
}

void Controller::Propose(Done<PlacementProposal> done) {
  Enqueue<PlacementProposal>(
      [this]() -> absl::StatusOr<PlacementProposal> {
        ASSIGN_OR_RETURN(last_proposal_, MakeProposal());
        return *last_proposal_;
      },
      std::move(done));
}

void Controller::ApplyProposed(uint64_t expected_version,
                               Done<AppliedPlacement> done) {
  Enqueue<AppliedPlacement>(
      [=, this] { return ApplyLastProposal(expected_version); },
      std::move(done));
}

void Controller::Apply(uint64_t expected_version, PlacementTarget target,
                       Done<AppliedPlacement> done) {
  Enqueue<AppliedPlacement>(
      [this, expected_version, target = std::move(target)] {
        return ApplyTarget(expected_version, target);
      },
      std::move(done));
}

void Controller::Rebalance(Done<RebalancedPlacement> done) {
  Enqueue<RebalancedPlacement>(
      [this]() -> absl::StatusOr<RebalancedPlacement> {
        RebalancedPlacement out;
        ASSIGN_OR_RETURN(out.proposal, MakeProposal());
        ASSIGN_OR_RETURN(out.applied,
                         Carry(out.proposal.from, out.proposal.plan.moves));
        return out;
      },
      std::move(done));
}

void Controller::Drain(const std::string& address, bool drain,
                       ExpertOrders::Done done) {
  if (!mesh_->IsKnown(address)) {
    return done(absl::NotFoundError(
        absl::StrCat("there is no expert service ", address)));
  }
  MutexLock lock(&drain_mutex_);
  if (!drain) {
    ++undos_[address];
    mesh_->Return(address);
    return OrderDrain(address, false, std::move(done));
  }
  if (mesh_->Leave(address).ok()) {
    return OrderDrain(address, true, std::move(done));
  }
  const uint64_t undos = undos_[address];
  lock.Unlock();
  const absl::Status added =
      Add([this, address, undos, done](const absl::Status& turn) {
        absl::Status status = turn;
        if (status.ok()) status = CheckNotUndone(address, undos);
        if (status.ok()) status = Evacuate(address);
        if (!status.ok()) return done(status);
        DrainEvacuated(address, undos, done);
      });
  if (!added.ok()) done(added);
}

absl::Status Controller::CheckNotUndone(const std::string& address,
                                        uint64_t undos) {
  MutexLock lock(&drain_mutex_);
  return undos_[address] == undos ? absl::OkStatus() : Undone();
}

void Controller::DrainEvacuated(const std::string& address, uint64_t undos,
                                ExpertOrders::Done done) {
  MutexLock lock(&drain_mutex_);
  const absl::Status status =
      undos_[address] == undos ? mesh_->Leave(address) : Undone();
  if (status.ok()) return OrderDrain(address, true, std::move(done));
  lock.Unlock();
  done(status);
}

void Controller::OrderDrain(const std::string& address, bool drain,
                            ExpertOrders::Done done) {
  if (!may_drain_) return done(Stopping());
  orders_->Drain(
      address, drain,
      [mesh = mesh_, address, drain, done](const absl::Status& status) {
        if (drain && !status.ok()) mesh->Return(address);
        done(status);
      });
}

// --- The control thread. ---------------------------------------------------

void Controller::Loop() {
  const Clock& clock = *Clock::Real();
  absl::Duration next = options_.auto_rebalance
                            ? clock.Now() + options_.rebalance_interval
                            : absl::InfiniteDuration();
  while (true) {
    Request request;
    {
      MutexLock lock(&mutex_);
      wake_.WaitFor(lock, std::max(absl::ZeroDuration(), next - clock.Now()),
                    [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
                      return stopping_ || !requests_.empty();
                    });
      if (stopping_) break;
      // A look that is due comes first: there may always be a request.
      if (clock.Now() < next && !requests_.empty()) {
        request = std::move(requests_.front());
        requests_.pop_front();
      }
    }
    if (request) {
      request(absl::OkStatus());
    } else if (clock.Now() >= next) {
      const absl::Duration look_again = RebalanceIfWorthIt();
      next = clock.Now() + look_again;
    }
  }
  std::deque<Request> left;
  {
    MutexLock lock(&mutex_);
    left.swap(requests_);
  }
  for (const Request& request : left) request(Stopping());
}

absl::Duration Controller::RebalanceIfWorthIt() {
  const absl::Duration interval = options_.rebalance_interval;
  const auto say = [this](LogLevel level, const std::string& reason) {
    if (reason == last_reason_) return;
    last_reason_ = reason;
    Log(level, "automatic rebalance", {{"reason", reason}});
  };
  const absl::StatusOr<PlacementProposal> proposal = MakeProposal();
  if (!proposal.ok()) {
    say(LogLevel::kWarning, std::string(proposal.status().message()));
    return interval;
  }
  const RebalanceDecision decision = Judge(*proposal);
  if (decision.moves.empty()) {
    say(LogLevel::kDebug, decision.reason);
    return std::min(interval, decision.look_again);
  }
  Log(LogLevel::kInfo, "automatic rebalance begins",
      {{"reason", decision.reason}, {"moves", decision.moves.size()}});
  const absl::StatusOr<AppliedPlacement> applied =
      Carry(proposal->from, decision.moves);
  policy_.Ended(applied.ok());
  if (!applied.ok()) {
    say(LogLevel::kWarning, std::string(applied.status().message()));
  } else {
    last_reason_.clear();
  }
  return interval;
}

RebalanceDecision Controller::Judge(const PlacementProposal& proposal) {
  const PlacementPlan& plan = proposal.plan;
  PlacementProblem problem =
      MakeProblem(mesh_->shape(), proposal.from, load_.Rows());
  const HostedSlots current = CurrentContents(problem);
  for (size_t h = 0; h < problem.hosts.size(); ++h) {
    // Whatever it holds is none of the plan's affair.
    if (problem.hosts[h].stands_by && plan.hosted[h] == current[h]) {
      problem.hosts[h].managed = false;
    }
  }
  const absl::Status now = CheckPlacement(problem, current);
  if (now.ok()) return policy_.Consider(plan);
  // Covering every expert does not wait for a better time.
  absl::StatusOr<std::vector<PlacementMove>> moves =
      UrgentMoves(problem, plan.hosted);
  return policy_.ConsiderUrgent(moves.ok() ? *std::move(moves) : plan.moves,
                                now.message());
}

absl::StatusOr<PlacementProposal> Controller::MakeProposal() const {
  PlacementProposal proposal;
  proposal.from = placement();
  if (proposal.from.hosts.empty()) {
    return absl::FailedPreconditionError("no expert service is ready");
  }
  ASSIGN_OR_RETURN(proposal.plan,
                   PlanAroundStandby(
                       MakeProblem(mesh_->shape(), proposal.from, load_.Rows()),
                       options_.planner));
  return proposal;
}

absl::StatusOr<AppliedPlacement> Controller::Carry(
    const MeshPlacement& from, const std::vector<PlacementMove>& moves) {
  AppliedPlacement applied;
  if (!moves.empty()) {
    const absl::Status status = runner_.Run(from.hosts, moves, &applied.made);
    Log(status.ok() ? LogLevel::kInfo : LogLevel::kWarning, "placement changed",
        {{"moves", applied.made.moves},
         {"planned", moves.size()},
         {"bytes_loaded", applied.made.bytes_loaded},
         {"status", status.ToString()}});
    Count(options_.metrics, status, applied.made);
    RETURN_IF_ERROR(status);
  }
  applied.version = mesh_->placement().version;
  return applied;
}

absl::StatusOr<AppliedPlacement> Controller::ApplyLastProposal(
    uint64_t expected_version) {
  RETURN_IF_ERROR(CheckVersion(expected_version, mesh_->placement()));
  if (!last_proposal_.has_value() ||
      last_proposal_->from.version != expected_version) {
    return absl::AbortedError(absl::StrCat("nothing was proposed for version ",
                                           expected_version,
                                           "; propose again"));
  }
  return Carry(last_proposal_->from, last_proposal_->plan.moves);
}

absl::StatusOr<AppliedPlacement> Controller::ApplyTarget(
    uint64_t expected_version, const PlacementTarget& target) {
  const MeshPlacement placement = this->placement();
  RETURN_IF_ERROR(CheckVersion(expected_version, placement));
  const PlacementProblem problem =
      MakeProblem(mesh_->shape(), placement, load_.Rows());
  HostedSlots hosted = CurrentContents(problem);
  for (const auto& [address, slots] : target) {
    const auto host =
        std::find_if(placement.hosts.begin(), placement.hosts.end(),
                     [&](const auto& h) { return h.id == address; });
    if (host == placement.hosts.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("there is no ready expert service ", address));
    }
    std::vector<SlotId>& held = hosted[host - placement.hosts.begin()];
    held = slots;
    std::sort(held.begin(), held.end());
  }
  ASSIGN_OR_RETURN(const MoveSequence sequence, PlanMoves(problem, hosted));
  if (sequence.reached != hosted) {
    return absl::FailedPreconditionError(
        "hosts are too full to exchange what they hold without uncovering an "
        "expert on the way; leave room for one expert more");
  }
  return Carry(placement, sequence.moves);
}

absl::Status Controller::Evacuate(const std::string& address) {
  const MeshPlacement placement = this->placement();
  const auto host =
      std::find_if(placement.hosts.begin(), placement.hosts.end(),
                   [&](const auto& h) { return h.id == address; });
  if (host == placement.hosts.end()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const MoveSequence sequence,
                   EvacuateAroundStandby(
                       MakeProblem(mesh_->shape(), placement, load_.Rows()),
                       static_cast<int>(host - placement.hosts.begin())));
  return Carry(placement, sequence.moves).status();
}

}  // namespace expertmesh::router
