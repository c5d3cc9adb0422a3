#include "services/cli/placement_view.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/cli/load_view.h"

namespace expertmesh {

std::string PlacementText(const admin::v1::Placement& placement) {
  std::string text = absl::StrFormat("version %d, epoch %d\n",
                                     placement.version(), placement.epoch());
  for (const admin::v1::PlacementHost& host : placement.hosts()) {
    absl::StrAppendFormat(&text, "  %-21s %-10s %s", host.address(),
                          host.pool(), HostedText(host.hosted()));
    if (host.managed()) {
      absl::StrAppend(&text, " (managed, within ",
                      BytesText(host.memory_budget_bytes()), ")");
    }
    if (host.speed() > 0 && host.speed() != 1) {
      absl::StrAppendFormat(&text, " (speed %.2f)", host.speed());
    }
    if (host.stands_by()) {
      absl::StrAppendFormat(&text,
                            " (stands by: %s is not the mesh's numerics_id; "
                            "--mix-numerics uses it)",
                            host.numerics_id());
    }
    absl::StrAppend(&text, "\n");
  }
  return text;
}

std::string ProposalText(const admin::v1::PlacementProposal& proposal) {
  std::string text = absl::StrFormat(
      "version %d: balancedness %.3f, proposed %.3f; %d moves, %s to load\n",
      proposal.version(), proposal.balancedness_before(),
      proposal.balancedness_after(), proposal.moves_size(),
      BytesText(proposal.bytes_to_load()));
  for (const admin::v1::PlacementMove& move : proposal.moves()) {
    const bool is_load = move.kind() == admin::v1::PlacementMove::KIND_LOAD;
    absl::StrAppendFormat(&text, "  %s expert %d of layer %d at %s\n",
                          is_load ? "load  " : "unload", move.expert_id(),
                          move.layer(), move.address());
  }
  return text;
}

std::string AppliedText(const admin::v1::ApplyPlacementResponse& applied) {
  return absl::StrFormat(
      "%d moves made, %s loaded; the placement is of version %d\n",
      applied.moves(), BytesText(applied.bytes_loaded()), applied.version());
}

}  // namespace expertmesh
