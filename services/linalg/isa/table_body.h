#pragma once

// Fills a table with the kernels of the lanes that the including file has
// chosen.

#include "services/linalg/isa/kernels.h"

namespace expertmesh {
namespace {

// `Bytes`: one of bytes_*.h.
template <typename Bytes>
constexpr Kernels MakeTable() {
  return {
      .gemm_panel = {{GemmPanel<FmaChain<F32Weights, F32Acts>>,
                      GemmPanel<FmaChain<BF16Weights, F32Acts>>,
                      GemmPanel<FmaChain<F16Weights, F32Acts>>},
                     {GemmPanel<FmaChain<F32Weights, BF16Acts>>,
                      GemmPanel<FmaChain<BF16Weights, BF16Acts>>,
                      GemmPanel<FmaChain<F16Weights, BF16Acts>>}},
      .gemm_panel_quantized = {GemmPanelInt8<Bytes>, GemmPanelInt4<Bytes>},
      .quantize_row = QuantizeRow<float>,
      .quantize_row_bf16 = QuantizeRow<uint16_t>,
      .quantize_row_signed = QuantizeRowSigned,
      .dequantize_row = DequantizeRow<float>,
      .dequantize_row_bf16 = DequantizeRow<uint16_t>,
      .quantize_columns = {QuantizeColumnsInt8, QuantizeColumnsInt4},
      .attend = {Attend<float>, Attend<uint16_t>, Attend<int8_t>},
      .rms_norm = RmsNorm<float>,
      .rms_norm_bf16 = RmsNorm<uint16_t>,
      .convert_to_bf16 = Convert<float, uint16_t>,
      .convert_to_f32 = Convert<uint16_t, float>,
      .add = AddTo,
      .add_scaled = AddScaled<float>,
      .add_scaled_bf16 = AddScaled<uint16_t>,
      .add_scaled_codes = AddScaledCodes,
      .silu_mul = SiluMul<float>,
      .silu_mul_bf16 = SiluMul<uint16_t>,
      .exp = ExpSpan,
      .softmax = Softmax,
      .dot = Dot,
  };
}

}  // namespace
}  // namespace expertmesh
