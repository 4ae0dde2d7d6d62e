// Rows of activations in AVX2.
#include "avx2_lanes.h"
#include "rows.h"
#include "weigh.h"

namespace puna {
namespace {

void norm(const float *x, const float *weight, float eps, int64_t n, float *out) {
  __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
  for (int64_t i = 0; i < n; i += 16) {
    const __m256 a = _mm256_maskload_ps(x + i, first_lanes(n - i)), b = _mm256_maskload_ps(x + i + 8, first_lanes(n - i - 8));
    low = _mm256_fmadd_ps(a, a, low);
    high = _mm256_fmadd_ps(b, b, high);
  }
  const __m256 scale = _mm256_set1_ps(1.0f / std::sqrt(fold_lanes(low, high) / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += 8) {
    const __m256i m = first_lanes(n - i);
    const __m256 v = _mm256_mul_ps(_mm256_maskload_ps(x + i, m), scale);
    _mm256_maskstore_ps(out + i, m, _mm256_mul_ps(v, _mm256_maskload_ps(weight + i, m)));
  }
}

void gate(const float *gate, const float *up, int64_t n, float *out) {
  const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
  for (int64_t i = 0; i < n; i += 8) {
    const __m256i m = first_lanes(n - i);
    const __m256 g = _mm256_maskload_ps(gate + i, m);
    const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, exp_lanes(_mm256_xor_ps(g, sign))));
    _mm256_maskstore_ps(out + i, m, _mm256_mul_ps(silu, _mm256_maskload_ps(up + i, m)));
  }
}

}  // namespace

const RowKernels avx2_rows{norm, gate, weigh<float>, weigh<double>};

}  // namespace puna
