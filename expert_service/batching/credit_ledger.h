#pragma once

// How many rows each router may have unanswered here (design decision 6).

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/time/time.h"

namespace expertmesh::expert {

// Shares a budget of rows among the open streams by what they asked for lately.
//
// A stream's demand is the most rows it had unanswered, halved with every
// half-life that passes; it wishes for twice that, so that one at its limit
// wants more, and for no less than a floor, a quarter of an equal share. Wishes
// are met from the smallest up; those that cannot be met get equal shares of
// what is left. So a stream that floods is held to its share as soon as another
// asks, one that is idle decays to the floor, and a budget that nobody wants is
// spread evenly: a lone stream has all of it.
//
// Grants never add up to more than the budget, except that each is at least 1.
// Pure: knows no clock and no thread; its owner serialises calls and gives a
// time that does not go back.
class CreditLedger {
 public:
  struct Options {
    int64_t budget_rows = 0;
    absl::Duration half_life = absl::Seconds(1);
  };
  // One stream's demand; owned by the ledger.
  class Account;

  explicit CreditLedger(const Options& options);
  ~CreditLedger();

  Account* Open(absl::Duration now);
  void Close(Account* account);

  // The stream asked for `rows`, whether they were then taken or refused.
  void Ask(Account* account, int64_t rows, absl::Duration now);
  // Rows asked for were taken, and are unanswered from now on.
  void Take(Account* account, int64_t rows);
  // Rows taken were answered, or given back.
  void Answer(Account* account, int64_t rows, absl::Duration now);

  int64_t UnansweredRows(const Account* account) const;
  // Rows the stream may have unanswered.
  int64_t Grant(const Account* account, absl::Duration now) const;
  // What one more stream would be granted.
  int64_t NewcomerGrant(absl::Duration now) const;

 private:
  // How the budget is shared at one moment.
  struct Shares {
    double floor = 0;  // smallest wish
    double level = 0;  // largest grant
    double spare = 0;  // on top of each wish, where all are met
  };

  double Demand(const Account& account, absl::Duration now) const;
  Shares Divide(absl::Duration now, size_t newcomers) const;
  static int64_t GrantOf(double wish, const Shares& shares);

  const Options options_;
  std::vector<std::unique_ptr<Account>> accounts_;
  mutable std::vector<double> wishes_;  // of Divide; kept for its memory
};

}  // namespace expertmesh::expert
