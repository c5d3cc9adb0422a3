#include "expert_service/batching/credit_ledger.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace expertmesh::expert {
namespace {

constexpr int64_t kBudget = 1000;

class CreditLedgerTest : public testing::Test {
 protected:
  // Rows sent at once, and answered at once.
  void Burst(CreditLedger::Account* account, int64_t rows) {
    ledger_.Ask(account, rows, now_);
    ledger_.Take(account, rows);
    ledger_.Answer(account, rows, now_);
  }
  int64_t Grant(const CreditLedger::Account* account) const {
    return ledger_.Grant(account, now_);
  }

  absl::Duration now_ = absl::Hours(1);
  CreditLedger ledger_{{.budget_rows = kBudget}};
};

TEST_F(CreditLedgerTest, ALoneStreamHasTheWholeBudget) {
  EXPECT_EQ(ledger_.NewcomerGrant(now_), kBudget);
  auto* a = ledger_.Open(now_);
  EXPECT_EQ(Grant(a), kBudget);
  Burst(a, 5);
  EXPECT_EQ(Grant(a), kBudget);
  Burst(a, 5000);
  EXPECT_EQ(Grant(a), kBudget);
}

TEST_F(CreditLedgerTest, StreamsThatAskForAllShareEqually) {
  auto* a = ledger_.Open(now_);
  auto* b = ledger_.Open(now_);
  Burst(a, 50'000);  // a flood asks for no more than its share
  Burst(b, 600);
  EXPECT_EQ(Grant(a), 500);
  EXPECT_EQ(Grant(b), 500);
}

TEST_F(CreditLedgerTest, AStreamAtItsLimitGrowsToItsShare) {
  auto* a = ledger_.Open(now_);
  auto* b = ledger_.Open(now_);
  Burst(a, 1000);
  std::vector<int64_t> grants;
  for (int round = 0; round < 4; ++round) {
    grants.push_back(Grant(b));
    Burst(b, grants.back());  // as much as it may
  }
  EXPECT_EQ(grants, (std::vector<int64_t>{125, 250, 500, 500}));
  EXPECT_EQ(Grant(a), 500);
}

TEST_F(CreditLedgerTest, TheShareOfAnIdleStreamDecaysToTheFloor) {
  auto* a = ledger_.Open(now_);
  auto* b = ledger_.Open(now_);
  Burst(a, 1000);
  Burst(b, 400);
  EXPECT_EQ(Grant(b), 500);
  ledger_.Ask(a, 1000, now_);
  ledger_.Take(a, 1000);  // unanswered all the while
  now_ += absl::Seconds(1);
  EXPECT_EQ(Grant(b), 400);  // it wishes for twice its 200
  EXPECT_EQ(Grant(a), 600);
  now_ += absl::Seconds(1);
  EXPECT_EQ(Grant(b), 200);
  now_ += absl::Minutes(1);
  EXPECT_EQ(Grant(b), 125);
  EXPECT_EQ(Grant(a), 875);
}

TEST_F(CreditLedgerTest, WhatNobodyWantsIsSpreadEvenly) {
  auto* a = ledger_.Open(now_);
  auto* b = ledger_.Open(now_);
  Burst(a, 150);  // wishes 300; b its floor, 125; 575 are left
  EXPECT_EQ(Grant(a), 587);
  EXPECT_EQ(Grant(b), 412);
}

TEST_F(CreditLedgerTest, ANewcomerStartsAtTheFloorOfABusyService) {
  auto* a = ledger_.Open(now_);
  Burst(a, 1000);
  EXPECT_EQ(ledger_.NewcomerGrant(now_), 125);
  auto* b = ledger_.Open(now_);
  EXPECT_EQ(Grant(b), 125);
  ledger_.Close(a);
  EXPECT_EQ(Grant(b), kBudget);
}

TEST_F(CreditLedgerTest, MoreStreamsThanRowsGetOneEach) {
  std::vector<CreditLedger::Account*> accounts;
  for (int64_t i = 0; i < 2 * kBudget; ++i) {
    accounts.push_back(ledger_.Open(now_));
  }
  EXPECT_EQ(Grant(accounts.front()), 1);
  EXPECT_EQ(ledger_.NewcomerGrant(now_), 1);
}

TEST_F(CreditLedgerTest, GrantsNeverAddUpToMoreThanTheBudget) {
  std::mt19937 random(7);
  std::vector<CreditLedger::Account*> open;
  for (int step = 0; step < 2000; ++step) {
    now_ += absl::Milliseconds(random() % 300);
    if (open.size() < 20 && random() % 8 == 0) {
      open.push_back(ledger_.Open(now_));
    } else if (open.size() > 1 && random() % 16 == 0) {
      ledger_.Close(open.back());
      open.pop_back();
    } else if (!open.empty()) {
      Burst(open[random() % open.size()], random() % 2000);
    }
    int64_t sum = 0;
    for (const auto* account : open) {
      sum += Grant(account);
      EXPECT_GE(Grant(account),
                kBudget / 4 / static_cast<int64_t>(open.size()));
    }
    ASSERT_LE(sum, kBudget);
    if (!open.empty()) {  // nor is more than rounding held back
      ASSERT_GE(sum, kBudget - static_cast<int64_t>(open.size()));
    }
  }
}

}  // namespace
}  // namespace expertmesh::expert
