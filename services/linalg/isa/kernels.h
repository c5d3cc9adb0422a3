#pragma once

// The table of vector kernels, one per instruction set; isa_choice.h says which
// is used.
//
// Only services/linalg and tests look here; everyone else calls gemm.h,
// vector_ops.h and attention.h. Types are plain pointers (bf16 and f16 as
// uint16_t): the files that fill the tables are compiled with wider flags than
// the rest of the project, so they must not instantiate shared inline code.

#include <cstdint>

namespace expertmesh {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Vnni, kAvx512BF16, kAmx };
inline constexpr Isa kAllIsas[] = {Isa::kPortable,   Isa::kAvx2,
                                   Isa::kAvx512,     Isa::kAvx512Vnni,
                                   Isa::kAvx512BF16, Isa::kAmx};

// One panel of a packed matrix times some rows. See gemm.h for the layouts.
struct GemmPanelArgs {
  const void* x;     // [num_rows, k], f32 or bf16
  int64_t x_stride;  // elements
  int64_t num_rows;
  const void* panel;  // 64 outputs
  int64_t k;
  int64_t width;  // real outputs of the panel, 1 to 64
  float* y;       // [num_rows, width]
  int64_t y_stride;
};
using GemmPanelFn = void (*)(const GemmPanelArgs& args);

// One int8 or int4 panel times some quantized rows. See panel_layout.h.
struct QuantizedPanelArgs {
  const uint8_t* x;  // [num_rows, k]
  int64_t x_stride;
  const float* x_scales;  // [num_rows]
  int64_t num_rows;
  const void* panel;  // 64 outputs, 64-byte aligned
  int64_t k;          // padded: a multiple of 64
  int64_t width;      // real outputs of the panel, 1 to 64
  float* y;           // [num_rows, width]
  int64_t y_stride;
  int8_t* scratch;  // [k, 64], 64-byte aligned; for int4 only
};
using QuantizedPanelFn = void (*)(const QuantizedPanelArgs& args);

// The weights of 16 outputs into a panel. See quantize.h.
struct QuantizeColumnsArgs {
  float* weights;  // [k, 16], overwritten
  int64_t k;       // padded with zeros: a multiple of 32
  void* panel;
  int64_t column;  // of the first output: a multiple of 16
};
// False, with nothing written, where a weight is not finite.
using QuantizeColumnsFn = bool (*)(const QuantizeColumnsArgs& args);

// Rows of one KV head over its pages. See attention.h.
struct AttendArgs {
  const float* queries;
  const int64_t* positions;
  int64_t num_rows;
  int64_t head_dim;
  int64_t window;
  const void* const* key_pages;
  const void* const* value_pages;
  float* out;
};
using AttendFn = void (*)(const AttendArgs& args);

struct Kernels {
  // [activations f32, bf16][weights f32, bf16, f16], as in DType.
  GemmPanelFn gemm_panel[2][3];
  // [int8, int4]. Every instruction set gives the same bits.
  QuantizedPanelFn gemm_panel_quantized[2];
  float (*quantize_row)(const float* x, int64_t n, uint8_t* codes);
  float (*quantize_row_bf16)(const uint16_t* x, int64_t n, uint8_t* codes);
  float (*quantize_row_signed)(const float* x, int64_t n, int8_t* codes);
  void (*dequantize_row)(float scale, const int8_t* codes, int64_t n,
                         float* out);
  void (*dequantize_row_bf16)(float scale, const int8_t* codes, int64_t n,
                              uint16_t* out);
  // [int8, int4]. Every instruction set gives the same bits.
  QuantizeColumnsFn quantize_columns[2];
  // [keys and values f32, bf16, int8], as in KvFormat.
  AttendFn attend[3];

  // As the functions of vector_ops.h.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n,
                   float* out);
  void (*rms_norm_bf16)(const float* x, const float* weight, float eps,
                        int64_t n, uint16_t* out);
  void (*convert_to_bf16)(const float* x, int64_t n, uint16_t* out);
  void (*convert_to_f32)(const uint16_t* x, int64_t n, float* out);
  void (*add)(const float* x, int64_t n, float* y);
  void (*add_scaled)(float a, const float* x, int64_t n, float* y);
  void (*add_scaled_bf16)(float a, const uint16_t* x, int64_t n, float* y);
  void (*add_scaled_codes)(float a, float scale, const int8_t* codes, int64_t n,
                           float* y);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*silu_mul_bf16)(const float* gate, const float* up, int64_t n,
                        uint16_t* out);
  void (*exp)(const float* x, int64_t n, float* out);
  void (*softmax)(float* x, int64_t n);
  float (*dot)(const float* x, const float* y, int64_t n);
};

// "portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx".
const char* IsaNameOf(Isa isa);

// The table of `isa`, or null where this CPU or this build lacks it.
const Kernels* KernelsFor(Isa isa);

// The table and the instruction set in use. Thread-safe.
const Kernels& ActiveKernels();
Isa ActiveIsa();

// Replaces the table in use; KernelsFor(isa) must not be null. While no kernel
// runs: at load and in tests.
void SetActiveIsa(Isa isa);

// Puts another table in the place of that of `isa`, which this CPU must have.
// While no kernel runs. `table` outlives its use.
void SetKernelsForTest(Isa isa, const Kernels* table);

// Defined by the per-ISA files.
extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512VnniKernels;
extern const Kernels kAvx512BF16Kernels;
extern const Kernels kAmxKernels;
#endif

}  // namespace expertmesh
