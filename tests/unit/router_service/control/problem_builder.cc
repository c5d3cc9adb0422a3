#include "tests/unit/router_service/control/problem_builder.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertmesh::router {

PlacementProblem MakeProblem(int64_t num_layers, std::vector<double> rows) {
  PlacementProblem problem;
  problem.num_layers = num_layers;
  problem.num_experts = static_cast<int64_t>(rows.size()) / num_layers;
  problem.rows = std::move(rows);
  problem.slot_bytes.assign(num_layers, 1);
  return problem;
}

PlacementHost ManagedHost(std::string id, int64_t budget,
                          std::vector<SlotId> hosted) {
  PlacementHost host;
  host.id = std::move(id);
  host.managed = true;
  host.budget_bytes = budget;
  host.hosted = std::move(hosted);
  return host;
}

PlacementHost FixedHost(std::string id, std::vector<SlotId> hosted) {
  PlacementHost host;
  host.id = std::move(id);
  host.hosted = std::move(hosted);
  return host;
}

HostedSlots CarryOut(const PlacementProblem& problem,
                     absl::Span<const PlacementMove> moves) {
  std::vector<std::set<SlotId>> contents;
  std::map<SlotId, int> copies;
  std::vector<int64_t> used(problem.hosts.size());
  for (size_t h = 0; h < problem.hosts.size(); ++h) {
    const auto& hosted = problem.hosts[h].hosted;
    contents.emplace_back(hosted.begin(), hosted.end());
    for (const SlotId slot : hosted) {
      ++copies[slot];
      used[h] += problem.slot_bytes[slot.layer];
    }
  }
  for (const PlacementMove& move : moves) {
    const PlacementHost& host = problem.hosts[move.host];
    EXPECT_TRUE(host.managed) << host.id;
    EXPECT_EQ(move.bytes, problem.slot_bytes[move.slot.layer]);
    if (move.kind == PlacementMove::Kind::kLoad) {
      EXPECT_TRUE(contents[move.host].insert(move.slot).second);
      ++copies[move.slot];
      used[move.host] += move.bytes;
      EXPECT_LE(used[move.host], host.budget_bytes) << host.id;
    } else {
      EXPECT_EQ(contents[move.host].erase(move.slot), 1u);
      EXPECT_GE(--copies[move.slot], 1)
          << "expert " << move.slot.expert << " of layer " << move.slot.layer;
      used[move.host] -= move.bytes;
    }
  }
  HostedSlots hosted;
  for (const auto& slots : contents) {
    hosted.emplace_back(slots.begin(), slots.end());
  }
  return hosted;
}

std::vector<std::string> MoveTexts(absl::Span<const PlacementMove> moves) {
  std::vector<std::string> texts;
  for (const PlacementMove& move : moves) {
    texts.push_back(
        absl::StrCat(move.kind == PlacementMove::Kind::kLoad ? "+" : "-",
                     move.host, ":", move.slot.layer, "/", move.slot.expert));
  }
  return texts;
}

}  // namespace expertmesh::router
