// The multiplications of the AVX2 kernels on machines with AVX-VNNI.
#include "avx2_probe.h"

namespace puna {
namespace {

int64_t int8(int64_t rounds) {
  const __m256i weights = _mm256_set1_epi8(3), acts = _mm256_set1_epi8(5);
  chains<avx2::SUMS>(_mm256_setzero_si256(), rounds, [&](__m256i sum) { return _mm256_dpbusd_avx_epi32(sum, weights, acts); });
  return rounds * avx2::SUMS * 32 * 2;
}

}  // namespace

const Probe avx_vnni_probe{"avx_vnni", int8, avx2::fp32};

}  // namespace puna
