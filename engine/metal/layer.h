// What the kernels of a layer share: the exponential, sums over a simdgroup in a stated order, rows of numbers.
// Products are never contracted with sums behind our back: a fused multiply-add is written as one.
#pragma METAL fp contract(off)

namespace puna {

// exp(x) = 2^n * exp(r), n = round(x / ln 2), by the polynomial that the CPU kernels use: the same bits on every chip and compiler.
// Arguments are clamped; a NaN stays one.
inline float exponential(float x) {
  if (isnan(x)) return x;
  x = x < 88.0f ? x : 88.0f;
  x = x > -87.0f ? x : -87.0f;
  const float n = rint(x * 1.44269502f);
  const float r = fma(-n, 1.42860677e-06f, fma(-n, 0.693145752f, x));
  float p = 0.00138144614f;
  p = fma(p, r, 0.00836878084f);
  p = fma(p, r, 0.0416683927f);
  p = fma(p, r, 0.166665196f);
  p = fma(p, r, 0.49999994f);
  p = fma(p, r, 1.0f);
  p = fma(p, r, 1.0f);
  return as_type<float>(as_type<uint>(p) + (uint(int(n)) << 23));
}

// The sum over the lanes of a simdgroup, in every lane: pairs at distance 16, then 8, 4, 2, 1.
inline float summed(float x) {
  for (ushort distance = 16; distance > 0; distance /= 2) x = x + simd_shuffle_xor(x, distance);
  return x;
}

// 1 / sqrt(mean square + eps) of a row whose squares are spread over the threads; `partial` has a float for each simdgroup.
template <int THREADS>
inline float inverse_root(float squares, threadgroup float* partial, int width, float eps, int thread_) {
  const float own = summed(squares);
  if (thread_ % 32 == 0) partial[thread_ / 32] = own;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float all = 0;
  for (int i = 0; i < THREADS / 32; ++i) all = all + partial[i];
  return rsqrt(all / float(width) + eps);
}

// The dims of a pair: (2i, 2i + 1) if rope is interleaved, else (i, i + HALF); behind the dims that turn, neighbours.
template <int HALF, bool INTERLEAVED>
inline int low_of(int pair) {
  return INTERLEAVED || pair >= HALF ? 2 * pair : pair;
}
template <int HALF, bool INTERLEAVED>
inline int high_of(int pair) {
  return INTERLEAVED || pair >= HALF ? 2 * pair + 1 : pair + HALF;
}

// What the indices of q4 stand for.
constant float CODEBOOK[16] = {-113, -89, -69, -53, -38, -25, -13, -2, 8, 20, 32, 46, 62, 80, 100, 127};

// Codes a group of 32 dims, one a lane; gives the scale, as the bits of a bfloat. It is rounded away from zero, so that no number
// is more than 127 times as large, and in 4 bits has the sign of the first of the largest. A group with what is no finite
// number has no number for a scale; one that is next to nothing has zero.
template <int BITS>
inline ushort coded(float x, int lane, thread ushort& code) {
  code = 0;
  float most = fabs(x);
  for (ushort distance = 16; distance > 0; distance /= 2) most = fmax(most, simd_shuffle_xor(most, distance));
  ushort first = ushort(fabs(x) == most ? lane : 31);
  for (ushort distance = 16; distance > 0; distance /= 2) first = min(first, simd_shuffle_xor(first, distance));
  const float peak = BITS == 8 ? most : simd_shuffle(x, first);
  if (simd_any(!isfinite(x))) return 0x7fc0;
  if (most < 7.88860905e-31f) return 0;
  const uint bits = (as_type<uint>(peak / 127.0f) + 0xffff) >> 16;
  const float scaled = x * (1.0f / as_type<float>(bits << 16));
  if (BITS == 8) {
    code = ushort(int(rint(scaled)) & 255);
  } else {
    for (int i = 0; i < 15; ++i) code += scaled > (CODEBOOK[i] + CODEBOOK[i + 1]) * 0.5f;
  }
  return ushort(bits);
}

}  // namespace puna
