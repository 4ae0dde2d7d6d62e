// The multiplications of the AVX-512 kernels.
#include <immintrin.h>

#include "probe.h"

namespace puna {
namespace {

constexpr int N = 12;  // sums under way: more than latency times instructions a cycle

int64_t int8(int64_t rounds) {
  const __m512i weights = _mm512_set1_epi8(3), acts = _mm512_set1_epi8(5);
  chains<N>(_mm512_setzero_si512(), rounds, [&](__m512i sum) { return _mm512_dpbusd_epi32(sum, weights, acts); });
  return rounds * N * 64 * 2;
}

int64_t fp32(int64_t rounds) {
  const __m512 weights = _mm512_set1_ps(0.5f), acts = _mm512_set1_ps(0.25f);
  chains<N>(_mm512_setzero_ps(), rounds, [&](__m512 sum) { return _mm512_fmadd_ps(weights, acts, sum); });
  return rounds * N * 16 * 2;
}

}  // namespace

const Probe avx512_probe{"avx512", int8, fp32};

}  // namespace puna
