// Rows of activations in NEON.
#include "neon_lanes.h"
#include "rows.h"
#include "weigh.h"

namespace puna {
namespace {

using namespace neon;

void norm(const float *x, const float *weight, float eps, int64_t n, float *out) {
  Sixteen sum = all(0);
  for (int64_t i = 0; i < n; i += LANES) {
    const Sixteen v = load_some(x + i, n - i);
    add_product(sum, v, v);
  }
  const float32x4_t scale = vdupq_n_f32(1.0f / std::sqrt(fold16(sum) / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += LANES) {
    Sixteen v = load_some(x + i, n - i);
    const Sixteen w = load_some(weight + i, n - i);
    for (int j = 0; j < VECTORS; ++j) v.v[j] = vmulq_f32(vmulq_f32(v.v[j], scale), w.v[j]);
    store_some(out + i, v, n - i);
  }
}

float32x4_t silu(float32x4_t x) { return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), exp_lanes(vnegq_f32(x)))); }

void gate(const float *gate, const float *up, int64_t n, float *out) {
  for (int64_t i = 0; i < n; i += LANES) {
    Sixteen v = load_some(gate + i, n - i);
    const Sixteen u = load_some(up + i, n - i);
    for (int j = 0; j < VECTORS; ++j) v.v[j] = vmulq_f32(silu(v.v[j]), u.v[j]);
    store_some(out + i, v, n - i);
  }
}

}  // namespace

const RowKernels neon_rows{norm, gate, weigh<float>, weigh<double>};

}  // namespace puna
