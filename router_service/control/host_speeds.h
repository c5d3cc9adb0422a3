#pragma once

// How fast hosts are, from the work they report.

#include <map>
#include <string>
#include <vector>

#include "router_service/control/load_window.h"
#include "router_service/control/placement_problem.h"

namespace expertmesh::router {

// Speeds of hosts relative to the median host, by what each got done while its
// device computed. Rows alone would mislead: a device reads an expert's weights
// once for all rows that come together, so a host of hot experts does more rows
// in the same time. Runs of experts alone mislead the other way. What is true
// lies between the two, so a host counts as fast or slow only as far as both
// say so.
//
// A speed stays until measurements are kSteady times off, so that noise of a
// fifth either way changes no plan; then it becomes what was measured. One
// thread.
class HostSpeeds {
 public:
  static constexpr double kSteady = 1.5;
  static constexpr double kMost = 16;  // and its inverse the least
  // Of computing within the window; less says nothing.
  static constexpr absl::Duration kLeastBusy = absl::Milliseconds(50);

  // Takes the work of all hosts within a window. Those not named are gone;
  // those that did too little keep the speed they had.
  void Update(const LoadWindow::Work& work);

  // Sets the speed of each host: its own; the median of its pool, if it never
  // did enough; 1 where nobody of the pool did.
  void Fill(std::vector<PlacementHost>* hosts) const;

 private:
  std::map<std::string, double> speeds_;  // of hosts that were measured
};

}  // namespace expertmesh::router
