// lanes.h in NEON: 16 lanes are four vectors. Files of different compile options include it, so nothing in it is shared.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "lanes.h"

namespace puna::neon {
namespace {

constexpr int VECTORS = 4;  // of 16 lanes

struct Sixteen {
  float32x4_t v[VECTORS];
};

inline Sixteen all(float value) {
  Sixteen s;
  for (auto &v : s.v) v = vdupq_n_f32(value);
  return s;
}

inline Sixteen load16(const float *x) {
  Sixteen s;
  for (int i = 0; i < VECTORS; ++i) s.v[i] = vld1q_f32(x + 4 * i);
  return s;
}

// The first `count` of x, then zeros.
inline Sixteen load_some(const float *x, int64_t count) {
  if (count >= LANES) return load16(x);
  float padded[LANES] = {};
  if (count > 0) std::memcpy(padded, x, count * sizeof(float));
  return load16(padded);
}

inline void store_some(float *x, const Sixteen &s, int64_t count) {
  if (count >= LANES) {
    for (int i = 0; i < VECTORS; ++i) vst1q_f32(x + 4 * i, s.v[i]);
    return;
  }
  float padded[LANES];
  for (int i = 0; i < VECTORS; ++i) vst1q_f32(padded + 4 * i, s.v[i]);
  std::memcpy(x, padded, count * sizeof(float));
}

// a + b c, rounded once.
inline void add_product(Sixteen &a, const Sixteen &b, const Sixteen &c) {
  for (int i = 0; i < VECTORS; ++i) a.v[i] = vfmaq_f32(a.v[i], b.v[i], c.v[i]);
}

inline float fold16(const Sixteen &s) {
  const float32x4_t four = vaddq_f32(vaddq_f32(s.v[0], s.v[2]), vaddq_f32(s.v[1], s.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

inline float32x4_t exp_lanes(float32x4_t x) {
  // Of a NaN and a number these two give a NaN, and the sum at the end adds 0 to its bits.
  x = vmaxq_f32(vdupq_n_f32(EXP_LOW), vminq_f32(vdupq_n_f32(EXP_HIGH), x));
  const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(LOG2_E)));
  float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(LN2_HIGH));
  r = vfmsq_f32(r, n, vdupq_n_f32(LN2_LOW));
  float32x4_t p = vdupq_n_f32(EXP_C[6]);
#pragma GCC unroll 8
  for (int i = 5; i >= 0; --i) p = vfmaq_f32(vdupq_n_f32(EXP_C[i]), p, r);
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
}

}  // namespace
}  // namespace puna::neon
