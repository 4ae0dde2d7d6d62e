// Arithmetic that every instruction set repeats bit for bit: the exponential, and the order of sums.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace puna {

// Sums of many terms run in this many lanes (lane = index mod LANES) and are folded 8, 4, 2, 1.
constexpr int64_t LANES = 16;

// exp(x) = 2^n * exp(r) with n = round(x / ln 2), |r| <= ln 2 / 2, by a polynomial of degree 6 in Horner form whose
// coefficients are a minimax fit (relative error below 2^-23.5, measured). Arguments are clamped to [EXP_LOW, EXP_HIGH]; a NaN
// stays one, so that a score which is no number reaches the logits, where it is told, and is not taken for a large weight.
constexpr float EXP_LOW = -87.0f, EXP_HIGH = 88.0f;
constexpr float LOG2_E = 0x1.715476p+0f, LN2_HIGH = 0x1.62e400p-1f, LN2_LOW = 0x1.7f7d1cp-20f;
constexpr float EXP_C[] = {0x1p0f, 0x1p0f, 0x1.fffffcp-2f, 0x1.555490p-3f, 0x1.5558f4p-5f, 0x1.123a6cp-7f, 0x1.6a2348p-10f};

inline float exp_lane(float x) {
  if (std::isnan(x)) return x;
  x = x < EXP_HIGH ? x : EXP_HIGH;
  x = x > EXP_LOW ? x : EXP_LOW;
  const float n = std::nearbyint(x * LOG2_E);
  const float r = std::fma(-n, LN2_LOW, std::fma(-n, LN2_HIGH, x));
  float p = EXP_C[6];
  for (int i = 5; i >= 0; --i) p = std::fma(p, r, EXP_C[i]);
  int32_t bits;
  std::memcpy(&bits, &p, sizeof bits);
  bits += static_cast<int32_t>(n) << 23;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

inline float fold(float *lanes) {
  for (int64_t half = LANES / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] = lanes[i] + lanes[i + half];
  }
  return lanes[0];
}

}  // namespace puna
