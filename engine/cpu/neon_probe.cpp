// The multiplications of the NEON kernels with the dot product.
#include "neon_probe.h"

namespace puna {
namespace {

int64_t int8(int64_t rounds) {
  const int8x16_t weights = vdupq_n_s8(3), acts = vdupq_n_s8(5);
  chains<neon::SUMS>(vdupq_n_s32(0), rounds, [&](int32x4_t sum) { return vdotq_s32(sum, weights, acts); });
  return rounds * neon::SUMS * 16 * 2;
}

}  // namespace

const Probe neon_probe{"neon_dotprod", int8, neon::fp32};

}  // namespace puna
