// NEON with sdot: a sum is one row by 4 columns.
#pragma once

#include "neon_planes.h"

namespace puna::neon {
namespace {

// R rows of int8 activations times C vectors of 4 columns.
template <int R, int C>
struct Quads {
  static constexpr Form FORM = Form::quads;
  static constexpr int UNITS = R, WIDTH = C;  // sums are UNITS x WIDTH

  // Rows of COUNT bytes, `stride` bytes apart.
  template <int COUNT>
  struct Rows {
    const int8_t *first;
    int64_t stride;

    Rows(const int8_t *q, int64_t stride_) : first(q), stride(stride_) {}
  };

  // Adds the products of 8 k: octet `k8` of the rows, whose vectors of columns begin at w.
  template <int COUNT>
  static void add(const Rows<COUNT> &rows, int k8, const int8_t (*w)[16], int32x4_t sums[UNITS][WIDTH]) {
    int8x16_t low[C], high[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) low[c] = vld1q_s8(w[c]), high[c] = vld1q_s8(w[4 + c]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int8x8_t q = vld1_s8(rows.first + r * rows.stride + 8 * k8);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        sums[r][c] = vdotq_lane_s32(sums[r][c], low[c], q, 0);
        sums[r][c] = vdotq_lane_s32(sums[r][c], high[c], q, 1);
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
