#pragma once

// Byte-pair encoding: the "model" of tokenizer.json.

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/text/config_node.h"
#include "services/text/piece_cache.h"

namespace expertmesh::text {

// A piece starts as its characters' tokens; then the adjacent pair of lowest
// rank (ties: leftmost) is merged until no pair has a rank.
// Thread-safe after Build.
class BpeModel {
 public:
  // Reads `root`.model. Errors: FAILED_PRECONDITION naming the place: other
  // types of model, dropout, merges whose tokens the vocabulary lacks.
  static absl::StatusOr<std::unique_ptr<BpeModel>> Build(
      const ConfigNode& root);

  // Appends the ids of `piece`, a text of valid UTF-8, to `ids`. Time: n log n
  // for the n characters of the piece. A character that has neither a token
  // nor byte tokens becomes the unknown token, or nothing without one.
  void Encode(absl::string_view piece, std::vector<int32_t>* ids) const;

  std::optional<int32_t> TokenId(absl::string_view token) const;
  const absl::flat_hash_map<std::string, int32_t>& vocab() const {
    return vocab_;
  }

 private:
  // How a pair of ids merges.
  struct Merge {
    uint32_t rank;
    int32_t id;  // of the token it becomes
  };
  struct Symbol;
  struct Candidate;

  BpeModel() = default;

  static uint64_t PairKey(int32_t left, int32_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  }

  absl::Status ReadOptions(const ConfigNode& config);
  absl::Status ReadVocab(const ConfigNode& config);
  absl::Status ReadMerges(const ConfigNode& config);
  void IndexVocab();
  void IndexJoints();

  std::vector<Symbol> SplitCharacters(absl::string_view piece) const;
  // The token of the characters [begin, end) of `piece`, with the affixes that
  // their place asks for.
  std::string WithAffixes(absl::string_view piece, size_t begin,
                          size_t end) const;
  std::optional<int32_t> CharacterId(absl::string_view piece, size_t begin,
                                     size_t end) const;
  bool AppendByteTokens(absl::string_view bytes,
                        std::vector<Symbol>* symbols) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;
  void MergeSymbols(std::vector<Symbol>* symbols) const;
  void EncodeRun(absl::string_view piece, std::vector<int32_t>* ids) const;
  void EncodeInRuns(absl::string_view piece, std::vector<int32_t>* ids) const;
  // The id of `character` where no affixes apply, or -1.
  int32_t PlainId(char32_t character) const;
  static size_t JointSlot(char32_t left, char32_t right);

  absl::flat_hash_map<std::string, int32_t> vocab_;
  // Keyed by PairKey(left id, right id).
  absl::flat_hash_map<uint64_t, Merge> merges_;
  // Ids of the characters below U+10000 and of the bytes <0xNN>; -1: none.
  std::vector<int32_t> character_ids_;
  std::array<int32_t, 256> byte_ids_;
  // Slots of the pairs of adjacent characters that some merge joins. No merge
  // reaches across any other pair, so a long piece is cut there into runs that
  // merge alone: a sentence without pre-tokenizer into its words.
  std::bitset<(1 << 18)> joints_;
  bool has_runs_ = false;  // whether this model may be treated so
  std::optional<int32_t> unknown_id_;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
  std::string prefix_;  // of tokens that continue a piece
  std::string suffix_;  // of tokens that end a piece
  mutable PieceCache cache_;
};

}  // namespace expertmesh::text
