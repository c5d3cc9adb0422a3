#pragma once

// Which rows go through which expert, and what becomes of outputs: what a batch
// brings beside its rows. Written on the host, read by kernels.

#include <cstddef>
#include <cstdint>

#include "expert_service/kernels/cuda/host_device.h"

namespace expertmesh::expert {

struct CudaExpertView;
struct RowReduction;

// Consecutive rows of one group; those of none are only there to make up a
// number.
struct RowTile {
  int32_t group;
  int32_t first_row;
  int32_t num_rows;
};

// A batch's rows on the host.
struct FfnGroups {
  const CudaExpertView* const* experts = nullptr;  // [num_groups]
  const uint32_t* group_offsets = nullptr;  // [num_groups + 1], first rows
  int64_t num_groups = 0;
  const RowReduction* reduction = nullptr;  // may be absent

  int64_t num_rows() const { return group_offsets[num_groups]; }
};

// For how much there is place. Of tables with the same room, and without large
// tiles, everything has the same size and place, so that the same launches do.
struct FfnRoom {
  int64_t num_rows = 0;
  int64_t num_groups = 0;
};

// The form of tables in memory, one behind the other: CudaExpertView
// [room.num_groups], RowTile [num_small + num_large], and with a reduction
// uint32_t num_lone, num_sums, sum_offsets [room.num_rows + 1], sum_rows,
// sum_weights (f32) and lone_rows [room.num_rows].
struct FfnTables {
  FfnRoom room;
  int32_t num_small = 0;  // tiles for the kernel of few rows
  int32_t num_large = 0;  // tiles for the kernel of many rows
  bool is_reduced = false;
  int64_t reduction_at = 0;  // in bytes
  int64_t size_bytes = 0;
};

// The most that tables of such batches take.
int64_t MaxFfnTableBytes(int64_t max_rows, int64_t max_groups);

// Groups of more rows than `small` have large tiles, of at most `large` rows.
struct TileRows {
  int small;
  int large;
};

// Writes the tables of a batch to `to`, host memory, 16-byte aligned. Requires
// that the batch fits into `room`.
FfnTables WriteFfnTables(const FfnGroups& groups, const FfnRoom& room,
                         const TileRows& tile_rows, void* to);

// The large tiles of tables at `memory`.
const RowTile* LargeTiles(const FfnTables& tables, const void* memory);

// A reduction as kernels find it (RowReduction).
class ReductionTable {
 public:
  EXPERTMESH_HOST_DEVICE ReductionTable(const void* words, int64_t room_rows)
      : words_(static_cast<const uint32_t*>(words)), rows_(room_rows) {}

  EXPERTMESH_HOST_DEVICE uint32_t num_lone() const { return words_[0]; }
  EXPERTMESH_HOST_DEVICE uint32_t num_sums() const { return words_[1]; }
  EXPERTMESH_HOST_DEVICE const uint32_t* sum_offsets() const {
    return words_ + 2;
  }
  EXPERTMESH_HOST_DEVICE const uint32_t* sum_rows() const {
    return sum_offsets() + rows_ + 1;
  }
  EXPERTMESH_HOST_DEVICE const float* sum_weights() const {
    return reinterpret_cast<const float*>(sum_rows() + rows_);
  }
  EXPERTMESH_HOST_DEVICE const uint32_t* lone_rows() const {
    return sum_rows() + 2 * rows_;
  }
  // What one takes.
  static constexpr int64_t Bytes(int64_t room_rows) {
    return (3 + 4 * room_rows) * 4;
  }

 private:
  const uint32_t* words_;
  int64_t rows_;
};

}  // namespace expertmesh::expert
