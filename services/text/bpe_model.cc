#include "services/text/bpe_model.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/text/utf8.h"

namespace expertmesh::text {
namespace {

constexpr int32_t kMergedAway = -1;

}  // namespace

// A token in the making. They form a list in an array, so that a merge does
// not move the symbols behind it.
struct BpeModel::Symbol {
  int32_t id;
  int32_t previous;  // index, -1 at the start
  int32_t next;      // index, -1 at the end
};

// A merge of the symbol at `position` with the one after it.
struct BpeModel::Candidate {
  uint32_t rank;
  int32_t position;
  int32_t id;

  // Order for a heap with the best on top: rank, then position.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

void BpeModel::IndexVocab() {
  character_ids_.assign(0x10000, -1);
  byte_ids_.fill(-1);
  for (const auto& [token, id] : vocab_) {
    if (token.empty()) continue;
    size_t size = 0;
    const char32_t character = NextCharacter(token, &size);
    if (size == token.size() && character < character_ids_.size()) {
      character_ids_[character] = id;
    }
  }
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    if (const auto id = TokenId(absl::StrFormat("<0x%02X>", byte))) {
      byte_ids_[byte] = *id;
    }
  }
}

size_t BpeModel::JointSlot(char32_t left, char32_t right) {
  // Pairs that share a slot only make runs longer.
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | right;
  return static_cast<size_t>((pair * 0x9E3779B97F4A7C15u) >> 46);
}

void BpeModel::IndexJoints() {
  // Affixes and ignore_merges depend on where a piece starts and ends.
  has_runs_ = prefix_.empty() && suffix_.empty() && !ignore_merges_;
  absl::flat_hash_map<int32_t, absl::string_view> token_of;
  for (const auto& [token, id] : vocab_) token_of[id] = token;
  // Tokens that are not written as the characters they stand for.
  absl::flat_hash_set<int32_t> stand_ins(byte_ids_.begin(), byte_ids_.end());
  if (unknown_id_.has_value()) stand_ins.insert(*unknown_id_);
  for (const auto& [pair, merge] : merges_) {
    const int32_t left_id = static_cast<int32_t>(pair >> 32);
    const int32_t right_id = static_cast<int32_t>(pair & 0xFFFFFFFFu);
    const absl::string_view left = token_of[left_id];
    const absl::string_view right = token_of[right_id];
    if (left.empty() || right.empty() || stand_ins.contains(left_id) ||
        stand_ins.contains(right_id)) {
      has_runs_ = false;
      return;
    }
    size_t left_end = PreviousBoundary(left, left.size());
    size_t right_begin = 0;
    joints_.set(JointSlot(NextCharacter(left, &left_end),
                          NextCharacter(right, &right_begin)));
  }
}

std::optional<int32_t> BpeModel::TokenId(absl::string_view token) const {
  const auto found = vocab_.find(token);
  if (found == vocab_.end()) return std::nullopt;
  return found->second;
}

std::string BpeModel::WithAffixes(absl::string_view piece, size_t begin,
                                  size_t end) const {
  return absl::StrCat(begin > 0 ? absl::string_view(prefix_) : "",
                      piece.substr(begin, end - begin),
                      end == piece.size() ? absl::string_view(suffix_) : "");
}

int32_t BpeModel::PlainId(char32_t character) const {
  if (character < character_ids_.size()) return character_ids_[character];
  std::string token;
  AppendUtf8(character, &token);
  return TokenId(token).value_or(-1);
}

std::optional<int32_t> BpeModel::CharacterId(absl::string_view piece,
                                             size_t begin, size_t end) const {
  if (!prefix_.empty() || !suffix_.empty()) {
    return TokenId(WithAffixes(piece, begin, end));
  }
  const int32_t id = PlainId(NextCharacter(piece, &begin));
  if (id < 0) return std::nullopt;
  return id;
}

bool BpeModel::AppendByteTokens(absl::string_view bytes,
                                std::vector<Symbol>* symbols) const {
  const auto id_of = [this](char byte) {
    return byte_ids_[static_cast<uint8_t>(byte)];
  };
  if (std::any_of(bytes.begin(), bytes.end(),
                  [&](char byte) { return id_of(byte) < 0; })) {
    return false;
  }
  for (char byte : bytes) symbols->push_back({id_of(byte), -1, -1});
  return true;
}

std::vector<BpeModel::Symbol> BpeModel::SplitCharacters(
    absl::string_view piece) const {
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  // An unknown token waits for its neighbours, with which it may fuse; byte
  // tokens overtake it, as they do in the tokenizers library.
  bool unknown_waits = false;
  const auto flush_unknown = [&] {
    if (unknown_waits) symbols.push_back({*unknown_id_, -1, -1});
    unknown_waits = false;
  };
  for (size_t offset = 0; offset < piece.size();) {
    const size_t begin = offset;
    NextCharacter(piece, &offset);
    if (const auto id = CharacterId(piece, begin, offset)) {
      flush_unknown();
      symbols.push_back({*id, -1, -1});
      continue;
    }
    if (byte_fallback_ &&
        AppendByteTokens(WithAffixes(piece, begin, offset), &symbols)) {
      continue;
    }
    if (!unknown_id_.has_value()) continue;
    if (!fuse_unknown_) flush_unknown();
    unknown_waits = true;
  }
  flush_unknown();

  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1 < count ? i + 1 : -1;
  }
  return symbols;
}

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BpeModel::MergeSymbols(std::vector<Symbol>* symbols_ptr) const {
  std::vector<Symbol>& symbols = *symbols_ptr;
  std::vector<Candidate> heap;
  heap.reserve(symbols.size());
  // Requires that `position` has a next symbol.
  const auto find_at = [&](int32_t position) {
    return FindMerge(symbols[position].id, symbols[symbols[position].next].id);
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) {
    if (const Merge* merge = find_at(i)) {
      heap.push_back({merge->rank, i, merge->id});
    }
  }
  std::make_heap(heap.begin(), heap.end());
  const auto push = [&](int32_t position) {
    if (const Merge* merge = find_at(position)) {
      heap.push_back({merge->rank, position, merge->id});
      std::push_heap(heap.begin(), heap.end());
    }
  };

  while (!heap.empty()) {
    const Candidate best = heap.front();
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
    Symbol& left = symbols[best.position];
    // Earlier merges may have changed what stands here.
    if (left.id == kMergedAway || left.next < 0) continue;
    const Merge* merge = find_at(best.position);
    if (merge == nullptr || merge->id != best.id) continue;

    Symbol& right = symbols[left.next];
    left.id = best.id;
    left.next = right.next;
    right.id = kMergedAway;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    if (left.previous >= 0) push(left.previous);
    if (left.next >= 0) push(best.position);
  }
}

void BpeModel::EncodeRun(absl::string_view piece,
                         std::vector<int32_t>* ids) const {
  if (cache_.Find(piece, ids)) return;
  const size_t first = ids->size();
  const auto whole = ignore_merges_ ? TokenId(piece) : std::nullopt;
  if (whole.has_value()) {
    ids->push_back(*whole);
  } else {
    std::vector<Symbol> symbols = SplitCharacters(piece);
    MergeSymbols(&symbols);
    for (const Symbol& symbol : symbols) {
      if (symbol.id != kMergedAway) ids->push_back(symbol.id);
    }
  }
  cache_.Insert(piece, ids->data() + first, ids->data() + ids->size());
}

void BpeModel::EncodeInRuns(absl::string_view piece,
                            std::vector<int32_t>* ids) const {
  size_t run_begin = 0;
  size_t offset = 0;
  char32_t left = NextCharacter(piece, &offset);
  bool left_known = PlainId(left) >= 0;
  while (offset < piece.size()) {
    const size_t boundary = offset;
    const char32_t right = NextCharacter(piece, &offset);
    const bool right_known = PlainId(right) >= 0;
    // Unknown characters may fuse, and wait for others: they stay in a run.
    if (left_known && right_known && !joints_[JointSlot(left, right)]) {
      EncodeRun(piece.substr(run_begin, boundary - run_begin), ids);
      run_begin = boundary;
    }
    left = right;
    left_known = right_known;
  }
  EncodeRun(piece.substr(run_begin), ids);
}

void BpeModel::Encode(absl::string_view piece,
                      std::vector<int32_t>* ids) const {
  if (piece.empty()) return;
  if (has_runs_ && piece.size() > PieceCache::kMaxPieceBytes) {
    EncodeInRuns(piece, ids);
  } else {
    EncodeRun(piece, ids);
  }
}

}  // namespace expertmesh::text
