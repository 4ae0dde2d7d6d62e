// The multiplications of the AVX2 kernels; the byte products of those with AVX-VNNI are in avx_vnni_probe.cpp.
#include "avx2_probe.h"

namespace puna {
namespace {

int64_t int8(int64_t rounds) {
  const __m256i weights = _mm256_set1_epi8(3), acts = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
  chains<avx2::SUMS>(_mm256_setzero_si256(), rounds, [&](__m256i sum) {
    __m256i bytes = weights;
    asm volatile("" : "+x"(bytes));  // else the product is computed once
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, acts), ones));
  });
  return rounds * avx2::SUMS * 32 * 2;
}

}  // namespace

const Probe avx2_probe{"avx2", int8, avx2::fp32};

}  // namespace puna
