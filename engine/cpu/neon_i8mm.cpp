// Matmul kernels for NEON with products of 2 x 8 and 8 x 2 bytes: Apple M2 and later, Neoverse V1 and N2.
#include <utility>

#include "matmul.h"
#include "neon_acts.h"
#include "neon_pairs.h"
#include "neon_quads.h"
#include "neon_strips.h"

namespace puna {
namespace {

using namespace neon;
using StripKernel = void (*)(const Strip &);

// A lone row has nobody to be paired with. Integers are exact, so the two forms give the same bits.
template <PanelKind KIND, int R>
constexpr StripKernel rows_kernel() {
  if constexpr (KIND.arithmetic == Arithmetic::dense) return dense_rows<KIND, R>;
  else if constexpr (R == 1) return quantised_rows<KIND, R, Quads>;
  else return quantised_rows<KIND, R, Pairs>;
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

const MatmulKernels neon_i8mm_matmul = all_kinds(std::make_index_sequence<KIND_COUNT>{});

}  // namespace puna
