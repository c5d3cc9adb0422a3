#pragma once

#include <array>
#include <cstdint>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "router_service/dispatch/routing.h"

namespace expertmesh::router {

// Bounds what policies that change routing may lose: the share of gate mass
// that rerouted and dropped rows cost, over all mass of the last half minute.
// A policy that turns answers to its will under load must not do so without
// end. One thread.
class LostMassBudget {
 public:
  // `max_lost`: 0: no routing may change; 1: no bound.
  explicit LostMassBudget(double max_lost) : max_lost_(max_lost) {}

  void set_max_lost(double max_lost) { max_lost_ = max_lost; }

  // What the next plan may lose, so that with it no more than max_lost of the
  // window's mass is.
  LossAllowance Allowance(absl::Duration now);

  // What became of a plan's rows. Mass that is not finite is left out.
  void Add(absl::Span<const RoutingAccount> accounts, absl::Duration now);

 private:
  static constexpr int kWindowSeconds = 30;
  struct Second {
    double kept = 0;
    double original = 0;
  };
  void MoveOn(absl::Duration now);

  double max_lost_;
  std::array<Second, kWindowSeconds> seconds_ = {};  // by second modulo window
  int64_t now_ = 0;
  Second total_;
};

}  // namespace expertmesh::router
