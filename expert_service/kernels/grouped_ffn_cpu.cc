#include <algorithm>
#include <vector>

#include "expert_service/kernels/grouped_ffn.h"
#include "services/linalg/quantized_rows.h"
#include "services/linalg/vector_ops.h"

namespace expertmesh::expert {
namespace {

// Rows of a task whose f32 sums wait on its stack for rounding.
constexpr int64_t kStepRows = 32;
// Rows of a task: enough to reuse the panels it reads, few enough to spread
// one busy expert over all threads.
constexpr int64_t kMinBlockRows = kStepRows;
constexpr int64_t kMaxBlockRows = 6 * kStepRows;
// Tasks wanted per thread, so that none waits long for the last.
constexpr int64_t kTasksPerThread = 4;
// Rows that one thread quantizes at a time.
constexpr int64_t kQuantizeRows = 16;

// Consecutive rows of one expert.
struct RowBlock {
  const PackedExpert* expert;
  int64_t begin;
  int64_t end;
};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Row `row` of a matrix with `columns` columns.
const void* RowOf(const void* data, DType dtype, int64_t columns, int64_t row) {
  return static_cast<const std::byte*>(data) +
         row * columns * static_cast<int64_t>(DTypeBytes(dtype));
}

// A task is one row block times one panel of outputs; both products run all of
// them over the pool. Every output is computed by GemmPanel from one row and
// one panel, so neither blocks nor threads change a bit.
class GroupedFfnCpu final : public GroupedFfn {
 public:
  GroupedFfnCpu(const GroupedFfnOptions& options, WorkerPool* pool)
      : options_(options),
        pool_(*pool),
        h_(options.max_rows * options.intermediate_size * sizeof(float)) {
    blocks_.reserve(options.max_rows);  // a block has at least one row
    if (options.quantized) {
      x_codes_ = QuantizedRows(options.max_rows, options.hidden_size);
      h_codes_ = QuantizedRows(options.max_rows, options.intermediate_size);
    }
  }

  absl::Status Run(const GroupedRows& rows) override {
    SplitRows(rows);
    if (options_.quantized) QuantizeX(rows);
    const int64_t num_blocks = static_cast<int64_t>(blocks_.size());
    const int64_t h_panels = CeilDiv(options_.intermediate_size, kPanelWidth);
    pool_.ParallelFor(num_blocks * h_panels, [&](int64_t task) {
      GateAndUp(rows, blocks_[task / h_panels], task % h_panels);
    });
    if (options_.quantized) QuantizeH(rows);
    const int64_t y_panels = CeilDiv(options_.hidden_size, kPanelWidth);
    pool_.ParallelFor(num_blocks * y_panels, [&](int64_t task) {
      Down(rows, blocks_[task / y_panels], task % y_panels);
    });
    return absl::OkStatus();
  }

 private:
  void SplitRows(const GroupedRows& rows) {
    blocks_.clear();
    const int64_t num_rows = rows.group_offsets.back();
    const int64_t panels =
        CeilDiv(std::min(options_.intermediate_size, options_.hidden_size),
                kPanelWidth);
    const int64_t tasks = kTasksPerThread * pool_.num_threads();
    const int64_t limit = std::clamp(CeilDiv(num_rows * panels, tasks),
                                     kMinBlockRows, kMaxBlockRows);
    for (size_t g = 0; g < rows.experts.size(); ++g) {
      const int64_t begin = rows.group_offsets[g];
      const int64_t count = rows.group_offsets[g + 1] - begin;
      const int64_t parts = CeilDiv(count, limit);
      for (int64_t part = 0; part < parts; ++part) {
        blocks_.push_back({rows.experts[g], begin + count * part / parts,
                           begin + count * (part + 1) / parts});
      }
    }
  }

  // Runs body(row) for every row, on the pool where there are enough of them.
  template <typename Body>
  void ForRows(const GroupedRows& rows, const Body& body) {
    const int64_t num_rows = rows.group_offsets.back();
    pool_.ParallelFor(CeilDiv(num_rows, kQuantizeRows), [&](int64_t task) {
      const int64_t end = std::min(num_rows, (task + 1) * kQuantizeRows);
      for (int64_t row = task * kQuantizeRows; row < end; ++row) body(row);
    });
  }

  void QuantizeX(const GroupedRows& rows) {
    const int64_t width = options_.hidden_size;
    ForRows(rows, [&](int64_t row) {
      if (rows.dtype == DType::kF32) {
        x_codes_.Store(row, static_cast<const float*>(rows.x) + row * width);
      } else {
        x_codes_.Store(row, static_cast<const BF16*>(rows.x) + row * width);
      }
    });
  }

  void QuantizeH(const GroupedRows& rows) {
    ForRows(rows, [&](int64_t row) {
      h_codes_.Store(row, h_.as<float>() + row * options_.intermediate_size);
    });
  }

  // Of the intermediate product: quantized from f32.
  DType HType(const GroupedRows& rows) const {
    return options_.quantized ? DType::kF32 : rows.dtype;
  }

  ActivationView XFrom(const GroupedRows& rows, int64_t row) const {
    if (options_.quantized) return {.quantized = x_codes_.view(row)};
    return {RowOf(rows.x, rows.dtype, options_.hidden_size, row), rows.dtype,
            options_.hidden_size};
  }

  ActivationView HFrom(const GroupedRows& rows, int64_t row) const {
    if (options_.quantized) return {.quantized = h_codes_.view(row)};
    return {RowOf(h_.data(), rows.dtype, options_.intermediate_size, row),
            rows.dtype, options_.intermediate_size};
  }

  // h = silu(gate x) * up x for one panel of h's columns.
  void GateAndUp(const GroupedRows& rows, const RowBlock& block,
                 int64_t panel) {
    alignas(64) float gate[kStepRows * kPanelWidth];
    alignas(64) float up[kStepRows * kPanelWidth];
    const int64_t column = panel * kPanelWidth;
    const int64_t width =
        std::min(kPanelWidth, options_.intermediate_size - column);
    for (int64_t row = block.begin; row < block.end; row += kStepRows) {
      const int64_t count = std::min(kStepRows, block.end - row);
      const ActivationView x = XFrom(rows, row);
      GemmPanel(x, count, block.expert->gate_proj, panel, gate, kPanelWidth);
      GemmPanel(x, count, block.expert->up_proj, panel, up, kPanelWidth);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = (row + i) * options_.intermediate_size + column;
        if (HType(rows) == DType::kF32) {
          SiluMul(gate + i * kPanelWidth, up + i * kPanelWidth, width,
                  h_.as<float>() + at);
        } else {
          SiluMul(gate + i * kPanelWidth, up + i * kPanelWidth, width,
                  h_.as<BF16>() + at);
        }
      }
    }
  }

  // One panel of y's columns.
  void Down(const GroupedRows& rows, const RowBlock& block, int64_t panel) {
    const PackedMatrix& w = block.expert->down_proj;
    const int64_t column = panel * kPanelWidth;
    if (rows.dtype == DType::kF32) {
      GemmPanel(HFrom(rows, block.begin), block.end - block.begin, w, panel,
                static_cast<float*>(rows.y) +
                    block.begin * options_.hidden_size + column,
                options_.hidden_size);
      return;
    }
    alignas(64) float sums[kStepRows * kPanelWidth];
    const int64_t width = std::min(kPanelWidth, options_.hidden_size - column);
    for (int64_t row = block.begin; row < block.end; row += kStepRows) {
      const int64_t count = std::min(kStepRows, block.end - row);
      GemmPanel(HFrom(rows, row), count, w, panel, sums, kPanelWidth);
      for (int64_t i = 0; i < count; ++i) {
        ConvertToBF16(sums + i * kPanelWidth, width,
                      static_cast<BF16*>(rows.y) +
                          (row + i) * options_.hidden_size + column);
      }
    }
  }

  const GroupedFfnOptions options_;
  WorkerPool& pool_;
  Buffer h_;  // [max_rows, intermediate_size], of HType
  QuantizedRows x_codes_;
  QuantizedRows h_codes_;
  std::vector<RowBlock> blocks_;
};

}  // namespace

std::unique_ptr<GroupedFfn> MakeGroupedFfnCpu(const GroupedFfnOptions& options,
                                              WorkerPool* pool) {
  return std::make_unique<GroupedFfnCpu>(options, pool);
}

}  // namespace expertmesh::expert
