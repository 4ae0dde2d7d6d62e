// What both NEON probes share. Included by neon_probe.cpp and neon_i8mm_probe.cpp alone.
#pragma once

#include <arm_neon.h>

#include "probe.h"

namespace puna::neon {

constexpr int SUMS = 16;  // under way: four pipes, a latency of three or four

static int64_t fp32(int64_t rounds) {
  const float32x4_t weights = vdupq_n_f32(0.5f), acts = vdupq_n_f32(0.25f);
  chains<SUMS>(vdupq_n_f32(0), rounds, [&](float32x4_t sum) { return vfmaq_f32(sum, weights, acts); });
  return rounds * SUMS * 4 * 2;
}

}  // namespace puna::neon
