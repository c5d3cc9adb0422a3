#include "expert_service/batching/credit_ledger.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace expertmesh::expert {
namespace {

// A stream that uses all it was granted must be able to grow.
constexpr double kHeadroom = 2;
// Of an equal share: what an idle stream keeps, for when it comes back.
constexpr double kFloorShare = 0.25;

}  // namespace

class CreditLedger::Account {
 public:
  int64_t unanswered = 0;
  double demand = 0;  // as of `at`
  absl::Duration at;
};

CreditLedger::CreditLedger(const Options& options) : options_(options) {}

CreditLedger::~CreditLedger() = default;

CreditLedger::Account* CreditLedger::Open(absl::Duration now) {
  accounts_.push_back(std::make_unique<Account>());
  accounts_.back()->at = now;
  wishes_.reserve(accounts_.size() + 1);
  return accounts_.back().get();
}

void CreditLedger::Close(Account* account) {
  const auto is_it = [&](const auto& other) { return other.get() == account; };
  accounts_.erase(std::find_if(accounts_.begin(), accounts_.end(), is_it));
}

void CreditLedger::Ask(Account* account, int64_t rows, absl::Duration now) {
  account->demand = std::max(Demand(*account, now),
                             static_cast<double>(account->unanswered + rows));
  account->at = now;
}

void CreditLedger::Take(Account* account, int64_t rows) {
  account->unanswered += rows;
}

void CreditLedger::Answer(Account* account, int64_t rows, absl::Duration now) {
  account->demand = Demand(*account, now);
  account->at = now;
  account->unanswered -= rows;
}

int64_t CreditLedger::UnansweredRows(const Account* account) const {
  return account->unanswered;
}

int64_t CreditLedger::Grant(const Account* account, absl::Duration now) const {
  const Shares shares = Divide(now, 0);
  return GrantOf(kHeadroom * Demand(*account, now), shares);
}

int64_t CreditLedger::NewcomerGrant(absl::Duration now) const {
  return GrantOf(0, Divide(now, 1));
}

double CreditLedger::Demand(const Account& account, absl::Duration now) const {
  const double half_lives =
      absl::FDivDuration(now - account.at, options_.half_life);
  return std::max(static_cast<double>(account.unanswered),
                  account.demand * std::exp2(-half_lives));
}

CreditLedger::Shares CreditLedger::Divide(absl::Duration now,
                                          size_t newcomers) const {
  const auto budget = static_cast<double>(options_.budget_rows);
  const size_t count = accounts_.size() + newcomers;
  Shares shares;
  shares.floor = kFloorShare * budget / static_cast<double>(count);
  wishes_.assign(newcomers, shares.floor);
  for (const auto& account : accounts_) {
    wishes_.push_back(
        std::max(shares.floor, kHeadroom * Demand(*account, now)));
  }
  std::sort(wishes_.begin(), wishes_.end());
  double left = budget;
  for (size_t i = 0; i < count; ++i) {
    shares.level = left / static_cast<double>(count - i);
    if (wishes_[i] >= shares.level) return shares;
    left -= wishes_[i];
  }
  shares.level = std::numeric_limits<double>::infinity();
  shares.spare = left / static_cast<double>(count);
  return shares;
}

int64_t CreditLedger::GrantOf(double wish, const Shares& shares) {
  const double grant =
      std::min(std::max(wish, shares.floor) + shares.spare, shares.level);
  return std::max<int64_t>(1, static_cast<int64_t>(grant));
}

}  // namespace expertmesh::expert
