#pragma once

// Operations on spans, written once over the lanes of a simd_*.h that the
// including file has chosen.
//
// Elements work alone with separately rounded multiplications and additions.
// Sums keep 16 partial sums, element i in number i % 16, and add them in a
// fixed tree.

namespace expertmesh {
namespace {

// The first n lanes, the others zero.
template <typename T>
EXPERTMESH_INLINE F32x16 LoadFirst(const T* p, int64_t n) {
  T lanes[16] = {};
  __builtin_memcpy(lanes, p, n * sizeof(T));
  return Load(lanes);
}

template <typename T>
EXPERTMESH_INLINE void StoreFirst(T* p, int64_t n, F32x16 a) {
  T lanes[16];
  Store(lanes, a);
  __builtin_memcpy(p, lanes, n * sizeof(T));
}

// Calls full(i) for every 16 elements and rest(i, count) for what is left.
template <typename Full, typename Rest>
EXPERTMESH_INLINE void ForSpans(int64_t n, Full full, Rest rest) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) full(i);
  if (i < n) rest(i, n - i);
}

// out[i] = op(in[i]...), 16 at a time.
template <typename Out, typename Op, typename... In>
EXPERTMESH_INLINE void Map(int64_t n, Out* out, Op op, const In*... in) {
  ForSpans(
      n, [&](int64_t i) { Store(out + i, op(Load(in + i)...)); },
      [&](int64_t i, int64_t count) {
        StoreFirst(out + i, count, op(LoadFirst(in + i, count)...));
      });
}

// e^x within 2 ulp: e^x = 2^n e^r, |r| <= ln(2)/2, e^r by Cephes' polynomial.
// Underflow is gradual; NaN stays NaN.
EXPERTMESH_INLINE F32x16 Exp(F32x16 x) {
  // Beyond these the result is infinity or zero anyway. The order of the
  // arguments lets NaN through.
  const F32x16 lowest = Broadcast(-104.0f);
  x = Min(Broadcast(89.0f), Max(lowest, x));
  // 1.5 * 2^23 leaves the nearest integer in the low bits.
  const F32x16 magic = Broadcast(12582912.0f);
  const F32x16 shifted = Add(Mul(x, Broadcast(1.44269504f)), magic);
  const F32x16 n = Sub(shifted, magic);
  // ln(2) in two parts, the first short enough for an exact product.
  F32x16 r = Sub(x, Mul(n, Broadcast(0.693359375f)));
  r = Sub(r, Mul(n, Broadcast(-2.12194440e-4f)));
  F32x16 p = Broadcast(1.9875691500e-4f);
  p = Add(Mul(p, r), Broadcast(1.3981999507e-3f));
  p = Add(Mul(p, r), Broadcast(8.3334519073e-3f));
  p = Add(Mul(p, r), Broadcast(4.1665795894e-2f));
  p = Add(Mul(p, r), Broadcast(1.6666665459e-1f));
  p = Add(Mul(p, r), Broadcast(5.0000001201e-1f));
  p = Add(Add(Mul(p, Mul(r, r)), r), Broadcast(1.0f));
  // Not left to the scaling, which takes a hundred cycles where it underflows.
  p = ZeroUnlessAbove(p, x, lowest);
  return ScaleByLowBits(p, shifted);
}

EXPERTMESH_INLINE F32x16 Silu(F32x16 x) {
  const F32x16 one = Broadcast(1.0f);
  return Div(x, Add(one, Exp(Sub(Broadcast(0.0f), x))));
}

template <typename Out>
void RmsNorm(const float* x, const float* weight, float eps, int64_t n,
             Out* out) {
  F32x16 squares = Broadcast(0.0f);
  const auto add = [&](F32x16 v) { squares = Add(squares, Mul(v, v)); };
  ForSpans(
      n, [&](int64_t i) { add(Load(x + i)); },
      [&](int64_t i, int64_t count) { add(LoadFirst(x + i, count)); });
  const float mean = SumLanes(squares) / static_cast<float>(n);
  const F32x16 scale = Broadcast(1.0f / __builtin_sqrtf(mean + eps));
  Map(
      n, out, [&](F32x16 v, F32x16 w) { return Mul(Mul(v, scale), w); }, x,
      weight);
}

// Widens or rounds, as the types say.
template <typename In, typename Out>
void Convert(const In* x, int64_t n, Out* out) {
  Map(
      n, out, [](F32x16 v) { return v; }, x);
}

void AddTo(const float* x, int64_t n, float* y) {
  Map(
      n, y, [](F32x16 a, F32x16 b) { return Add(a, b); },
      static_cast<const float*>(y), x);
}

template <typename In>
void AddScaled(float a, const In* x, int64_t n, float* y) {
  const F32x16 factor = Broadcast(a);
  Map(
      n, y, [&](F32x16 sum, F32x16 v) { return Add(sum, Mul(factor, v)); },
      static_cast<const float*>(y), x);
}

void AddScaledCodes(float a, float scale, const int8_t* codes, int64_t n,
                    float* y) {
  const F32x16 factor = Broadcast(a);
  const F32x16 step = Broadcast(scale);
  Map(
      n, y,
      [&](F32x16 sum, F32x16 code) {
        return Add(sum, Mul(factor, Mul(step, code)));
      },
      static_cast<const float*>(y), codes);
}

template <typename Out>
void DequantizeRow(float scale, const int8_t* codes, int64_t n, Out* out) {
  const F32x16 step = Broadcast(scale);
  Map(
      n, out, [&](F32x16 code) { return Mul(step, code); }, codes);
}

template <typename Out>
void SiluMul(const float* gate, const float* up, int64_t n, Out* out) {
  Map(
      n, out, [](F32x16 g, F32x16 u) { return Mul(Silu(g), u); }, gate, up);
}

void ExpSpan(const float* x, int64_t n, float* out) {
  Map(
      n, out, [](F32x16 v) { return Exp(v); }, x);
}

void Softmax(float* x, int64_t n) {
  if (n == 0) return;
  // The first element pads a short span: it changes no maximum.
  F32x16 max = Broadcast(x[0]);
  ForSpans(
      n, [&](int64_t i) { max = Max(max, Load(x + i)); },
      [&](int64_t i, int64_t count) {
        for (; count > 0; ++i, --count) max = Max(max, Broadcast(x[i]));
      });
  const F32x16 top = Broadcast(MaxLanes(max));
  Map(
      n, x, [&](F32x16 v) { return Exp(Sub(v, top)); },
      static_cast<const float*>(x));
  F32x16 sums = Broadcast(0.0f);
  ForSpans(
      n, [&](int64_t i) { sums = Add(sums, Load(x + i)); },
      [&](int64_t i, int64_t count) {
        sums = Add(sums, LoadFirst(x + i, count));
      });
  const F32x16 total = Broadcast(SumLanes(sums));
  Map(
      n, x, [&](F32x16 v) { return Div(v, total); },
      static_cast<const float*>(x));
}

float Dot(const float* x, const float* y, int64_t n) {
  F32x16 sums = Broadcast(0.0f);
  const auto add = [&](F32x16 a, F32x16 b) { sums = Add(sums, Mul(a, b)); };
  ForSpans(
      n, [&](int64_t i) { add(Load(x + i), Load(y + i)); },
      [&](int64_t i, int64_t count) {
        add(LoadFirst(x + i, count), LoadFirst(y + i, count));
      });
  return SumLanes(sums);
}

}  // namespace
}  // namespace expertmesh
