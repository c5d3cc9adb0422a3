#include <algorithm>
#include <vector>

#include "expert_service/kernels/grouped_ffn.h"
#include "services/linalg/activation_row.h"
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

const PackedExpert* Packed(const LoadedExpert* expert) {
  return static_cast<const PackedExpert*>(expert);
}

// What the products of one batch take and give.
struct Operands {
  DType x_type;
  const void* x;  // [num_rows, hidden_size]; quantized experts take codes
  DType h_type;
  DType y_type;  // f32 or bf16
  void* y;       // [num_rows, hidden_size]
};

// A task is one row block times one panel of outputs; both products run all of
// them over the pool. Every output is computed by GemmPanel from one row and
// one panel, so neither blocks nor threads change a bit.
class GroupedFfnCpu final : public GroupedFfn {
 public:
  GroupedFfnCpu(const GroupedFfnOptions& options, WorkerPool* pool)
      : options_(options),
        pool_(*pool),
        h_(options.max_rows * options.intermediate_size * sizeof(float)),
        wide_y_(options.max_rows * options.hidden_size * sizeof(float)) {
    blocks_.reserve(options.max_rows);  // a block has at least one row
    if (options.quantized) {
      x_codes_ = QuantizedRows(options.max_rows, options.hidden_size);
      h_codes_ = QuantizedRows(options.max_rows, options.intermediate_size);
    } else {
      wide_x_ = Buffer(wide_y_.size());
    }
  }

  absl::Status Start(const GroupedRows& rows) override {
    SplitRows(rows);
    const Operands operands = Prepare(rows);
    const int64_t num_blocks = static_cast<int64_t>(blocks_.size());
    const int64_t h_panels = CeilDiv(options_.intermediate_size, kPanelWidth);
    pool_.ParallelFor(num_blocks * h_panels, [&](int64_t task) {
      GateAndUp(operands, blocks_[task / h_panels], task % h_panels);
    });
    if (options_.quantized) QuantizeH(rows);
    const int64_t y_panels = CeilDiv(options_.hidden_size, kPanelWidth);
    pool_.ParallelFor(num_blocks * y_panels, [&](int64_t task) {
      Down(operands, blocks_[task / y_panels], task % y_panels);
    });
    if (rows.dtype == DType::kInt8) StoreY(rows);
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
        blocks_.push_back({Packed(rows.experts[g]),
                           begin + count * part / parts,
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

  // Brings x into the form that the experts take.
  Operands Prepare(const GroupedRows& rows) {
    Operands operands = {.x_type = rows.dtype,
                         .x = rows.x,
                         .h_type = rows.dtype,
                         .y_type = rows.dtype,
                         .y = rows.y};
    if (rows.dtype == DType::kInt8) {
      operands.x_type = operands.h_type = WideType(rows);
      operands.x = wide_x_.data();
      operands.y_type = DType::kF32;
      operands.y = wide_y_.data();
    }
    if (options_.quantized) {
      operands.h_type = DType::kF32;  // quantized from there
      QuantizeX(rows);
    } else if (rows.dtype == DType::kInt8) {
      WidenX(rows, operands.x_type);
    }
    return operands;
  }

  static DType WideType(const GroupedRows& rows) {
    const bool is_bf16 =
        !rows.experts.empty() &&
        Packed(rows.experts.front())->gate_proj.format() == WeightFormat::kBF16;
    return is_bf16 ? DType::kBF16 : DType::kF32;
  }

  CodedRow CodedX(const GroupedRows& rows, int64_t row) const {
    return ReadCodedRow(static_cast<const std::byte*>(rows.x) +
                        row * RowBytes(DType::kInt8, options_.hidden_size));
  }

  void QuantizeX(const GroupedRows& rows) {
    const int64_t width = options_.hidden_size;
    ForRows(rows, [&](int64_t row) {
      if (rows.dtype == DType::kInt8) {
        const CodedRow coded = CodedX(rows, row);
        x_codes_.StoreCodes(row, coded.scale, coded.codes);
      } else if (rows.dtype == DType::kF32) {
        x_codes_.Store(row, static_cast<const float*>(rows.x) + row * width);
      } else {
        x_codes_.Store(row, static_cast<const BF16*>(rows.x) + row * width);
      }
    });
  }

  void WidenX(const GroupedRows& rows, DType type) {
    const int64_t width = options_.hidden_size;
    ForRows(rows, [&](int64_t row) {
      const CodedRow x = CodedX(rows, row);
      if (type == DType::kF32) {
        DequantizeRow(x.scale, x.codes, width,
                      wide_x_.as<float>() + row * width);
      } else {
        DequantizeRow(x.scale, x.codes, width,
                      wide_x_.as<BF16>() + row * width);
      }
    });
  }

  void StoreY(const GroupedRows& rows) {
    const int64_t width = options_.hidden_size;
    ForRows(rows, [&](int64_t row) {
      StoreRow(wide_y_.as<float>() + row * width, width, DType::kInt8,
               static_cast<std::byte*>(rows.y) +
                   row * RowBytes(DType::kInt8, width));
    });
  }

  void QuantizeH(const GroupedRows& rows) {
    ForRows(rows, [&](int64_t row) {
      h_codes_.Store(row, h_.as<float>() + row * options_.intermediate_size);
    });
  }

  ActivationView XFrom(const Operands& operands, int64_t row) const {
    if (options_.quantized) return {.quantized = x_codes_.view(row)};
    return {RowOf(operands.x, operands.x_type, options_.hidden_size, row),
            operands.x_type, options_.hidden_size};
  }

  ActivationView HFrom(const Operands& operands, int64_t row) const {
    if (options_.quantized) return {.quantized = h_codes_.view(row)};
    return {RowOf(h_.data(), operands.h_type, options_.intermediate_size, row),
            operands.h_type, options_.intermediate_size};
  }

  // h = silu(gate x) * up x for one panel of h's columns.
  void GateAndUp(const Operands& operands, const RowBlock& block,
                 int64_t panel) {
    alignas(64) float gate[kStepRows * kPanelWidth];
    alignas(64) float up[kStepRows * kPanelWidth];
    const int64_t column = panel * kPanelWidth;
    const int64_t width =
        std::min(kPanelWidth, options_.intermediate_size - column);
    for (int64_t row = block.begin; row < block.end; row += kStepRows) {
      const int64_t count = std::min(kStepRows, block.end - row);
      const ActivationView x = XFrom(operands, row);
      GemmPanel(x, count, block.expert->gate_proj, panel, gate, kPanelWidth);
      GemmPanel(x, count, block.expert->up_proj, panel, up, kPanelWidth);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = (row + i) * options_.intermediate_size + column;
        if (operands.h_type == DType::kF32) {
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
  void Down(const Operands& operands, const RowBlock& block, int64_t panel) {
    const PackedMatrix& w = block.expert->down_proj;
    const int64_t column = panel * kPanelWidth;
    if (operands.y_type == DType::kF32) {
      GemmPanel(HFrom(operands, block.begin), block.end - block.begin, w, panel,
                static_cast<float*>(operands.y) +
                    block.begin * options_.hidden_size + column,
                options_.hidden_size);
      return;
    }
    alignas(64) float sums[kStepRows * kPanelWidth];
    const int64_t width = std::min(kPanelWidth, options_.hidden_size - column);
    for (int64_t row = block.begin; row < block.end; row += kStepRows) {
      const int64_t count = std::min(kStepRows, block.end - row);
      GemmPanel(HFrom(operands, row), count, w, panel, sums, kPanelWidth);
      for (int64_t i = 0; i < count; ++i) {
        ConvertToBF16(sums + i * kPanelWidth, width,
                      static_cast<BF16*>(operands.y) +
                          (row + i) * options_.hidden_size + column);
      }
    }
  }

  const GroupedFfnOptions options_;
  WorkerPool& pool_;
  Buffer h_;  // [max_rows, intermediate_size] of h_type
  // [max_rows, hidden_size], touched only where rows are int8.
  Buffer wide_x_;
  Buffer wide_y_;
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
