#include "services/text/piece_splitter.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::text {
namespace {

// A stretch of a piece: a delimiter, or what lies between two.
struct Stretch {
  Range range;
  bool is_delimiter;
};

// Covers [0, size) with the matches and the gaps between them.
void CoverWithStretches(const std::vector<Range>& matches, size_t size,
                        bool invert, std::vector<Stretch>* stretches) {
  size_t end = 0;
  for (const Range& match : matches) {
    if (match.begin > end) stretches->push_back({{end, match.begin}, invert});
    stretches->push_back({match, !invert});
    end = match.end;
  }
  if (end < size) stretches->push_back({{end, size}, invert});
}

// Joins each stretch to its predecessor where `joins(previous, current)`.
template <typename Joins>
void JoinForward(Joins joins, std::vector<Stretch>* stretches) {
  size_t kept = 0;
  bool previous = false;
  for (const Stretch& stretch : *stretches) {
    if (kept > 0 && joins(previous, stretch.is_delimiter)) {
      (*stretches)[kept - 1].range.end = stretch.range.end;
    } else {
      (*stretches)[kept++].range = stretch.range;
    }
    previous = stretch.is_delimiter;
  }
  stretches->resize(kept);
}

void MergeWithNext(std::vector<Stretch>* stretches) {
  std::vector<Stretch> merged;
  bool next_is_delimiter = false;
  for (auto it = stretches->rbegin(); it != stretches->rend(); ++it) {
    if (it->is_delimiter && !next_is_delimiter && !merged.empty()) {
      merged.back().range.begin = it->range.begin;
    } else {
      merged.push_back(*it);
    }
    next_is_delimiter = it->is_delimiter;
  }
  stretches->assign(merged.rbegin(), merged.rend());
}

void ApplyBehavior(SplitBehavior behavior, std::vector<Stretch>* stretches) {
  switch (behavior) {
    case SplitBehavior::kIsolated:
      break;
    case SplitBehavior::kRemoved:
      stretches->erase(
          std::remove_if(stretches->begin(), stretches->end(),
                         [](const Stretch& s) { return s.is_delimiter; }),
          stretches->end());
      break;
    case SplitBehavior::kMergedWithPrevious:
      JoinForward([](bool previous, bool now) { return now && !previous; },
                  stretches);
      break;
    case SplitBehavior::kMergedWithNext:
      MergeWithNext(stretches);
      break;
    case SplitBehavior::kContiguous:
      JoinForward([](bool previous, bool now) { return now == previous; },
                  stretches);
      break;
  }
}

}  // namespace

absl::StatusOr<SplitBehavior> ParseSplitBehavior(const ConfigNode& owner) {
  ASSIGN_OR_RETURN(const std::string name, owner.GetString("behavior"));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return owner.Error(absl::StrCat("behavior ", name, " is not supported"));
}

PieceSplitter::PieceSplitter(std::shared_ptr<const Pattern> pattern,
                             SplitBehavior behavior, bool invert)
    : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

absl::Status PieceSplitter::operator()(PieceList* list) const {
  std::vector<PieceList::Piece> split;
  split.reserve(list->pieces.size());
  std::vector<Range> matches;
  std::vector<Stretch> stretches;
  for (const PieceList::Piece& piece : list->pieces) {
    matches.clear();
    stretches.clear();
    RETURN_IF_ERROR(pattern_->FindAll(list->View(piece), &matches));
    CoverWithStretches(matches, piece.end - piece.begin, invert_, &stretches);
    ApplyBehavior(behavior_, &stretches);
    for (const Stretch& stretch : stretches) {
      const auto [begin, end] = stretch.range;
      if (begin == end) continue;
      split.push_back({piece.begin + begin, piece.begin + end,
                       piece.starts_text && begin == 0});
    }
  }
  list->pieces = std::move(split);
  return absl::OkStatus();
}

}  // namespace expertmesh::text
