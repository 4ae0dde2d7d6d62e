// Weights of logits for the draw of a token: a loop that each instruction set compiles into its own vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "rows.h"

namespace puna {

constexpr int64_t WEIGH_LANES = 32;  // chains of sums, several for each register of an instruction set

static inline double multiply_add(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  return a * b + c;  // where a fused one would be a call
#endif
}

// exp(x) to a few ulp, for x in [EXP_LEAST, 0]: 2^n exp(r) with n = round(x / ln 2), |r| <= ln 2 / 2, by Taylor's polynomial
// of degree 13 (its error is 4e-18). Adding 1.5 * 2^52 rounds, and leaves n in the lowest bits. 0 where it is not wanted: by
// bits, for compilers make vectors of no loop that has a branch.
constexpr double EXP_LEAST = -708.0;
static inline double exp_to_few_ulp(double x, bool wanted) {
  constexpr double ROUND = 0x1.8p52, LOG2_E = 0x1.71547652b82fep+0, LN2_HIGH = 0x1.62e42fefa38p-1, LN2_LOW = 0x1.ef35793c7673p-45;
  constexpr double C[] = {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
                          1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  const double rounded = multiply_add(x, LOG2_E, ROUND), n = rounded - ROUND;
  const double r = multiply_add(-n, LN2_LOW, multiply_add(-n, LN2_HIGH, x));
  double p = C[13];
#pragma GCC unroll 13
  for (int i = 12; i >= 0; --i) p = multiply_add(p, r, C[i]);
  uint64_t power, bits;
  std::memcpy(&power, &rounded, sizeof power);
  std::memcpy(&bits, &p, sizeof bits);
  bits = (bits + (power << 52)) & -static_cast<uint64_t>(wanted);
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

// `scale` is the temperature where something is cut off, for then the exponent must be the one that the rule speaks of, to
// the last bit; else its inverse, which is faster.
template <bool CUTS>
static inline double weight_of(double logit, double highest, double scale, double least) {
  const double gap = logit - highest, x = CUTS ? gap / scale : gap * scale;
  return exp_to_few_ulp(x > EXP_LEAST ? x : EXP_LEAST, x >= least);
}

template <bool CUTS, class Real>
static inline void weigh_strips(const Real *logits, const Weighing &w, int64_t n, double *sums) {
  const double highest = w.highest, least = std::max(w.least, EXP_LEAST);
  const double scale = CUTS ? w.temperature : std::min(1 / w.temperature, std::numeric_limits<double>::max());
  for (int64_t first = 0; first < n; first += w.strip) {
    double lanes[WEIGH_LANES] = {};
    const int64_t end = std::min(n, first + w.strip);
    int64_t i = first;
    for (; i + WEIGH_LANES <= end; i += WEIGH_LANES)
      for (int64_t lane = 0; lane < WEIGH_LANES; ++lane)
        lanes[lane] += weight_of<CUTS>(logits[i + lane], highest, scale, least);
    for (int64_t lane = 0; i + lane < end; ++lane) lanes[lane] += weight_of<CUTS>(logits[i + lane], highest, scale, least);
    for (int64_t half = WEIGH_LANES / 2; half > 0; half /= 2)
      for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    *sums++ = lanes[0];
  }
}

template <class Real>
static inline void weigh(const Real *logits, const Weighing &w, int64_t n, double *sums) {
  if (w.least > EXP_LEAST) weigh_strips<true>(logits, w, n, sums);
  else weigh_strips<false>(logits, w, n, sums);
}

}  // namespace puna
