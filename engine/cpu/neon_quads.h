// NEON with sdot: a sum is one row by 4 columns.
#pragma once

#include "neon_planes.h"

namespace puna::neon {
namespace {

// R rows of int8 activations times C vectors of 4 columns.
template <int R, int C>
struct Quads {
  static constexpr Form FORM = Form::quads;
  static constexpr int ROWS = 1;  // of a sum
  static constexpr int UNITS = R, WIDTH = C;  // sums are UNITS x WIDTH

  template <int COUNT>
  using Rows = RowPairs<R, COUNT>;

  // Adds the products of 8 k: octet `k8` of the rows, whose vectors of columns begin at w.
  template <int COUNT>
  [[gnu::always_inline]] static void add(const Rows<COUNT> &rows, int k8, const int8_t (*w)[16],
                                         int32x4_t sums[UNITS][WIDTH]) {
    int8x16_t low[C], high[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) low[c] = vld1q_s8(w[c]), high[c] = vld1q_s8(w[4 + c]);
#pragma GCC unroll 4
    for (int u = 0; u < Rows<COUNT>::UNITS; ++u) {
      const int8x16_t q = vld1q_s8(rows.two[k8][u]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        int32x4_t &even = sums[2 * u][c];
        even = vdotq_laneq_s32(vdotq_laneq_s32(even, low[c], q, 0), high[c], q, 1);
        if (2 * u + 1 == R) continue;
        int32x4_t &odd = sums[2 * u + 1][c];
        odd = vdotq_laneq_s32(vdotq_laneq_s32(odd, low[c], q, 2), high[c], q, 3);
      }
    }
  }
  // Where the vectors of columns 4 c.. are in an octet, and numbers of columns as sums hold them.
  static constexpr int first_vector(int c) { return c; }
  static void spread(const int32x4_t columns[C], int32x4_t out[WIDTH]) {
    for (int c = 0; c < C; ++c) out[c] = columns[c];
  }
  static int32x4_t row(const int32x4_t sums[UNITS][WIDTH], int r, int c) { return sums[r][c]; }
};

}  // namespace
}  // namespace puna::neon
