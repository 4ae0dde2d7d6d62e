// The AVX-512 row of matmul kernels: a strip for every kind of panel, and the activations' forms.
#include <immintrin.h>

#include <array>
#include <utility>

#include "avx512_acts.h"
#include "avx512_strips.h"
#include "matmul.h"

namespace puna {
namespace {

using namespace avx512;

// Sums of a panel go out, with bias and residual where they are given; columns past the last are not touched.
template <int R>
inline void store(const Strip &s, int64_t column, const __m512 acc[R]) {
  const int64_t left = s.columns - column;
  const __mmask16 mask = left >= COLUMNS ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    __m512 y = acc[r];
    if (s.bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, s.bias + column));
    if (s.residual) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, s.residual + r * s.out_stride + column));
    _mm512_mask_storeu_ps(s.out + r * s.out_stride + column, mask, y);
  }
}

template <PanelKind KIND, int R>
void quantised_rows(const Strip &s) {
  const uint8_t *panel = s.panels;
  for (int64_t column = 0; column < s.columns; column += COLUMNS, panel += s.panel_bytes) {
    __m512 acc[R];
    if constexpr (KIND.arithmetic == Arithmetic::subscaled) subscaled_panel<KIND, R>(s, panel, acc);
    else grouped_panel<KIND, R>(s, panel, acc);
    store<R>(s, column, acc);
  }
}

template <PanelKind KIND, int R>
void dense_rows(const Strip &s) {
  constexpr int P = R < 4 ? 4 : 2;
  const uint8_t *panel = s.panels;
  int64_t column = 0;
  for (; column + (P - 1) * COLUMNS < s.columns; column += P * COLUMNS, panel += P * s.panel_bytes) {
    __m512 acc[P][R];
    dense_panels<KIND, R, P>(s, panel, acc);
    for (int p = 0; p < P; ++p) store<R>(s, column + p * COLUMNS, acc[p]);
  }
  for (; column < s.columns; column += COLUMNS, panel += s.panel_bytes) {
    __m512 acc[1][R];
    dense_panels<KIND, R, 1>(s, panel, acc);
    store<R>(s, column, acc[0]);
  }
}

using StripKernel = void (*)(const Strip &);

template <PanelKind KIND, int R>
constexpr StripKernel rows_kernel() {
  if constexpr (KIND.arithmetic == Arithmetic::dense) return dense_rows<KIND, R>;
  else return quantised_rows<KIND, R>;
}

// The number of rows chooses how many sums are in flight; it never changes a sum.
template <PanelKind KIND>
void strip(const Strip &s) {
  static constexpr StripKernel by_rows[STRIP_ROWS] = {
      rows_kernel<KIND, 1>(), rows_kernel<KIND, 2>(), rows_kernel<KIND, 3>(), rows_kernel<KIND, 4>(),
      rows_kernel<KIND, 5>(), rows_kernel<KIND, 6>(), rows_kernel<KIND, 7>(), rows_kernel<KIND, 8>()};
  by_rows[s.rows - 1](s);
}

template <size_t... I>
constexpr MatmulKernels all_kinds(std::index_sequence<I...>) {
  return {{prepare128, prepare32, prepare_dense}, {strip<KINDS[I]>...}};
}

}  // namespace

const MatmulKernels avx512_matmul = all_kinds(std::make_index_sequence<KIND_COUNT>{});

}  // namespace puna
