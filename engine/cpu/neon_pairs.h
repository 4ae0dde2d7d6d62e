// NEON with smmla: a sum is two rows by two columns.
#pragma once

#include "neon_planes.h"

namespace puna::neon {
namespace {

// R rows of int8 activations, two by two, times C vectors of 4 columns.
template <int R, int C>
struct Pairs {
  static constexpr Form FORM = Form::pairs;
  static constexpr int ROWS = 2;  // of a sum
  static constexpr int UNITS = (R + 1) / 2, WIDTH = 2 * C;  // sums are UNITS x WIDTH

  template <int COUNT>
  using Rows = RowPairs<R, COUNT>;

  // Adds the products of 8 k: octet `k8` of the rows, whose vectors of columns begin at w.
  template <int COUNT>
  [[gnu::always_inline]] static void add(const Rows<COUNT> &rows, int k8, const int8_t (*w)[16],
                                         int32x4_t sums[UNITS][WIDTH]) {
    int8x16_t columns[WIDTH];
#pragma GCC unroll 8
    for (int c = 0; c < WIDTH; ++c) columns[c] = vld1q_s8(w[c]);
#pragma GCC unroll 4
    for (int u = 0; u < UNITS; ++u) {
      const int8x16_t q = vld1q_s8(rows.two[k8][u]);
#pragma GCC unroll 8
      for (int c = 0; c < WIDTH; ++c) sums[u][c] = vmmlaq_s32(sums[u][c], q, columns[c]);
    }
  }
  static constexpr int first_vector(int c) { return 2 * c; }
  static void spread(const int32x4_t columns[C], int32x4_t out[WIDTH]) {
    for (int c = 0; c < C; ++c) {
      const int64x2_t four = vreinterpretq_s64_s32(columns[c]);
      out[2 * c] = vreinterpretq_s32_s64(vzip1q_s64(four, four));
      out[2 * c + 1] = vreinterpretq_s32_s64(vzip2q_s64(four, four));
    }
  }
  static int32x4_t row(const int32x4_t sums[UNITS][WIDTH], int r, int c) {
    const int64x2_t a = vreinterpretq_s64_s32(sums[r / 2][2 * c]), b = vreinterpretq_s64_s32(sums[r / 2][2 * c + 1]);
    return vreinterpretq_s32_s64(r % 2 ? vzip2q_s64(a, b) : vzip1q_s64(a, b));
  }
};

}  // namespace
}  // namespace puna::neon
