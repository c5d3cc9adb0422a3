#include "expert_service/kernels/cuda/ffn_tables.h"

#include <algorithm>
#include <cstring>

#include "expert_service/kernels/cuda/ffn_kernels.h"
#include "expert_service/kernels/cuda/ffn_stages.h"
#include "expert_service/kernels/grouped_ffn.h"

namespace expertmesh::expert {
namespace {

// Writes the tiles of all groups of one kind; returns the end.
RowTile* WriteTiles(const FfnGroups& groups, const TileRows& tile_rows,
                    bool is_large, RowTile* to) {
  for (int64_t g = 0; g < groups.num_groups; ++g) {
    const auto end = static_cast<int32_t>(groups.group_offsets[g + 1]);
    auto row = static_cast<int32_t>(groups.group_offsets[g]);
    if ((end - row > tile_rows.small) != is_large) continue;
    for (; row < end; row += tile_rows.large) {
      *to++ = {static_cast<int32_t>(g), row,
               std::min(tile_rows.large, end - row)};
    }
  }
  return to;
}

int64_t NumLargeGroups(const FfnGroups& groups, const TileRows& tile_rows) {
  int64_t count = 0;
  for (int64_t g = 0; g < groups.num_groups; ++g) {
    count += groups.group_offsets[g + 1] - groups.group_offsets[g] >
             static_cast<uint32_t>(tile_rows.small);
  }
  return count;
}

void WriteReduction(const RowReduction& reduction, int64_t room_rows,
                    uint32_t* words) {
  words[0] = static_cast<uint32_t>(reduction.lone_rows.size());
  words[1] = static_cast<uint32_t>(reduction.num_sums());
  const auto copy = [](const auto& from, const void* to) {
    if (from.empty()) return;
    std::memcpy(const_cast<void*>(to), from.data(), from.size() * 4);
  };
  const ReductionTable table(words, room_rows);
  copy(reduction.sum_offsets, table.sum_offsets());
  copy(reduction.sum_rows, table.sum_rows());
  copy(reduction.sum_weights, table.sum_weights());
  copy(reduction.lone_rows, table.lone_rows());
}

}  // namespace

const RowTile* LargeTiles(const FfnTables& tables, const void* memory) {
  const auto* const views = static_cast<const CudaExpertView*>(memory);
  return reinterpret_cast<const RowTile*>(views + tables.room.num_groups) +
         tables.num_small;
}

int64_t MaxFfnTableBytes(int64_t max_rows, int64_t max_groups) {
  // A group has at most one tile that is not full.
  const int64_t tiles = max_groups + max_rows / kLargeRows;
  return max_groups * static_cast<int64_t>(sizeof(CudaExpertView)) +
         tiles * static_cast<int64_t>(sizeof(RowTile)) +
         ReductionTable::Bytes(max_rows);
}

FfnTables WriteFfnTables(const FfnGroups& groups, const FfnRoom& room,
                         const TileRows& tile_rows, void* to) {
  FfnTables tables = {.room = room};
  auto* const views = static_cast<CudaExpertView*>(to);
  for (int64_t g = 0; g < groups.num_groups; ++g) views[g] = *groups.experts[g];
  auto* const first = reinterpret_cast<RowTile*>(views + room.num_groups);
  RowTile* end = WriteTiles(groups, tile_rows, /*is_large=*/false, first);
  // As many as if every group that is not large had a tile.
  RowTile* const padded =
      first + room.num_groups - NumLargeGroups(groups, tile_rows);
  while (end < padded) *end++ = {};
  tables.num_small = static_cast<int32_t>(end - first);
  end = WriteTiles(groups, tile_rows, /*is_large=*/true, end);
  tables.num_large = static_cast<int32_t>(end - first) - tables.num_small;
  tables.size_bytes =
      reinterpret_cast<std::byte*>(end) - static_cast<const std::byte*>(to);
  tables.reduction_at = tables.size_bytes;
  if (groups.reduction != nullptr) {
    WriteReduction(*groups.reduction, room.num_rows,
                   reinterpret_cast<uint32_t*>(end));
    tables.is_reduced = true;
    tables.size_bytes += ReductionTable::Bytes(room.num_rows);
  }
  return tables;
}

}  // namespace expertmesh::expert
