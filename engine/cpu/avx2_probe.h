// What both AVX2 probes share. Included by avx2_probe.cpp and avx_vnni_probe.cpp alone.
#pragma once

#include <immintrin.h>

#include "probe.h"

namespace puna::avx2 {

constexpr int SUMS = 10;  // under way: latency times instructions a cycle; with the operands they fill 16 registers

static int64_t fp32(int64_t rounds) {
  const __m256 weights = _mm256_set1_ps(0.5f), acts = _mm256_set1_ps(0.25f);
  chains<SUMS>(_mm256_setzero_ps(), rounds, [&](__m256 sum) { return _mm256_fmadd_ps(weights, acts, sum); });
  return rounds * SUMS * 8 * 2;
}

}  // namespace puna::avx2
