#include "services/text/piece_cache.h"

#include <functional>
#include <string_view>

namespace expertmesh::text {

size_t PieceCache::ShardOf(absl::string_view piece) {
  return std::hash<std::string_view>{}({piece.data(), piece.size()}) %
         kNumShards;
}

bool PieceCache::Find(absl::string_view piece,
                      std::vector<int32_t>* ids) const {
  if (piece.size() > kMaxPieceBytes) return false;
  const Shard& shard = shards_[ShardOf(piece)];
  MutexLock lock(&shard.mutex);
  const auto found = shard.pieces.find(piece);
  if (found == shard.pieces.end()) return false;
  ids->insert(ids->end(), found->second.begin(), found->second.end());
  return true;
}

void PieceCache::Insert(absl::string_view piece, const int32_t* first,
                        const int32_t* last) {
  if (piece.size() > kMaxPieceBytes) return;
  Shard& shard = shards_[ShardOf(piece)];
  MutexLock lock(&shard.mutex);
  if (shard.pieces.size() >= kMaxPieces / kNumShards) shard.pieces.clear();
  shard.pieces.try_emplace(piece, first, last);
}

size_t PieceCache::size() const {
  size_t total = 0;
  for (const Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    total += shard.pieces.size();
  }
  return total;
}

}  // namespace expertmesh::text
