// Kernels over rows of activations: norm and gate.
#pragma once

#include <cstdint>

namespace puna {

struct RowKernels {
  // out[i] = x[i] * rsqrt(mean(x^2) + eps) * weight[i]. Sums run in 16 lanes (lane = index mod 16), folded 8, 4, 2, 1.
  void (*norm)(const float *x, const float *weight, float eps, int64_t n, float *out);
  // out[i] = silu(gate[i]) * up[i]; out may be gate.
  void (*gate)(const float *gate, const float *up, int64_t n, float *out);
};

extern const RowKernels portable_rows;
extern const RowKernels avx512_rows;
extern const RowKernels avx2_rows;
extern const RowKernels neon_rows;

}  // namespace puna
