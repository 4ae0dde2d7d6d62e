// The multiplications of the NEON kernels with matrix products of bytes.
#include "neon_probe.h"

namespace puna {
namespace {

int64_t int8(int64_t rounds) {
  const int8x16_t weights = vdupq_n_s8(3), acts = vdupq_n_s8(5);
  chains<neon::SUMS>(vdupq_n_s32(0), rounds, [&](int32x4_t sum) { return vmmlaq_s32(sum, weights, acts); });
  return rounds * neon::SUMS * 32 * 2;
}

}  // namespace

const Probe neon_i8mm_probe{"neon_i8mm", int8, neon::fp32};

}  // namespace puna
