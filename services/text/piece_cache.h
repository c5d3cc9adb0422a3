#pragma once

// Ids of pieces seen before: most words of a text are.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "services/core/mutex.h"

namespace expertmesh::text {

// Bounded map from piece to ids. Thread-safe: shards have a lock each.
class PieceCache {
 public:
  // Longer pieces are not kept: they are rare, and their ids would fill it.
  static constexpr size_t kMaxPieceBytes = 64;
  // All shards together.
  static constexpr size_t kMaxPieces = size_t{1} << 15;

  // Appends the ids of `piece` to `ids` if they are known.
  bool Find(absl::string_view piece, std::vector<int32_t>* ids) const;

  // Remembers that `piece` has the ids [first, last). A full shard starts over:
  // what is frequent comes back at once.
  void Insert(absl::string_view piece, const int32_t* first,
              const int32_t* last);

  // Pieces held now.
  size_t size() const;

 private:
  static constexpr size_t kNumShards = 16;

  struct Shard {
    mutable Mutex mutex;
    absl::flat_hash_map<std::string, std::vector<int32_t>> pieces
        ABSL_GUARDED_BY(mutex);
  };

  static size_t ShardOf(absl::string_view piece);

  std::array<Shard, kNumShards> shards_;
};

}  // namespace expertmesh::text
