// Kernels over rows: norm and gate of activations, weights of logits.
#pragma once

#include <cstdint>

namespace puna {

// How a logit weighs in a draw: exp of its gap to the highest over the temperature, nothing if that is below `least`.
struct Weighing {
  double highest, temperature, least;
  int64_t strip;
};

struct RowKernels {
  // out[i] = x[i] * rsqrt(mean(x^2) + eps) * weight[i]. Sums run in 16 lanes (lane = index mod 16), folded 8, 4, 2, 1.
  void (*norm)(const float *x, const float *weight, float eps, int64_t n, float *out);
  // out[i] = silu(gate[i]) * up[i]; out may be gate.
  void (*gate)(const float *gate, const float *up, int64_t n, float *out);
  // The sum of weights of each strip of logits. Alone among kernels its bits hang on the instruction set: it errs by some
  // ulp, and who draws with it knows by how much (engine/draw.py).
  void (*weigh32)(const float *logits, const Weighing &weighing, int64_t n, double *sums);
  void (*weigh64)(const double *logits, const Weighing &weighing, int64_t n, double *sums);
};

extern const RowKernels portable_rows;
extern const RowKernels avx512_rows;
extern const RowKernels avx2_rows;
extern const RowKernels neon_rows;

}  // namespace puna
