// y = x W^T over panels: what an instruction set provides, and the loops around it.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include "panels.h"

namespace puna {

// The law of the arithmetic, equal for every instruction set, thread count and number of rows:
//   q       round to nearest even(x * (levels / amax)), scale = amax / levels, levels as best_steps chooses them; a block
//           that holds an infinity or a NaN has q = 0 and scale = NaN; one so small that levels / amax is infinite has
//           q = 0 and scale = 0
//   subscaled, per 128 values ascending
//           isum = sum of (code - zero) q * sub-scale, msum = sum of q * minimum, both exact in int32
//           acc = fma(scale, fma(-dmin, msum, d * isum), acc); without minima: fma(scale, d * isum, acc)
//   grouped, per 32 values ascending, isum = sum of (code - zero) q
//           acc = fma(isum, d * scale, acc); with biases: acc = fma(bias, scale * sum(q), acc)
//   dense, per value ascending
//           acc = fma(x, w, acc)
//   then acc + bias of the output, then + residual, each where it is given.

// 128 activations that share a scale, for subscaled panels.
struct Acts128 {
  int8_t q[128];
  int32_t negative_sums[8];   // -sum(q) per 16: times `zero` it is where a kernel's sum starts
  int16_t negative_pairs[4];  // -sum(q) per 32, read two at a time
  float scale;
  int32_t unused;
};

// 8 x 32 activations with a scale each, for grouped panels.
struct Acts32 {
  int8_t q[256];
  float scales[8];
  int32_t negative_sums[8];
  float sums[8];  // scale * sum(q)
};
static_assert(sizeof(Acts128) == 176 && sizeof(Acts32) == 352);

// Bytes of SUPERBLOCK activations in the form that an arithmetic wants.
constexpr int64_t acts_bytes(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::subscaled ? 2 * sizeof(Acts128)
         : arithmetic == Arithmetic::grouped ? sizeof(Acts32)
                                             : SUPERBLOCK * sizeof(float);
}

// How many steps the largest magnitude of a block may be. A block of 32 takes the number whose squared error is the least,
// which errs 5 to 6 % less than 127 alone; a block of 128 has too many values for the choice to matter.
constexpr float LEVELS[] = {127.0f, 126.0f, 125.0f};

// How a block is quantised, from the bits of its largest magnitude. Bits order like the floats, with infinity and then
// every NaN on top.
struct Steps {
  float scale, inverse;  // inverse 0: every q is 0
};
inline Steps steps_of(int32_t amax_bits, float levels = LEVELS[0]) {
  float amax;
  std::memcpy(&amax, &amax_bits, sizeof amax);
  if (!(amax <= std::numeric_limits<float>::max())) return {std::numeric_limits<float>::quiet_NaN(), 0};
  const float inverse = levels / amax;
  if (inverse > std::numeric_limits<float>::max()) return {0, 0};
  return {amax / levels, inverse};
}

// The steps of the least squared error, the first of equals; `error` may be NaN.
template <class Error>
Steps best_steps(int32_t amax_bits, const Error &error) {
  Steps best = steps_of(amax_bits);
  float least = error(best);
  for (size_t i = 1; i < std::size(LEVELS); ++i) {
    const Steps tried = steps_of(amax_bits, LEVELS[i]);
    const float found = error(tried);
    if (found < least) best = tried, least = found;
  }
  return best;
}

// Dense activations stay as they are. Internal, as every function here that instruction sets compile and may not inline: of a weak
// one the linker would keep one copy for all.
static inline void prepare_dense(const float *x, int64_t k, void *acts) {
  auto *row = static_cast<float *>(acts);
  std::memcpy(row, x, k * sizeof(float));
  std::memset(row + k, 0, ((k + SUPERBLOCK - 1) / SUPERBLOCK * SUPERBLOCK - k) * sizeof(float));
}

constexpr int64_t STRIP_ROWS = 8;

// At most STRIP_ROWS rows of activations times consecutive panels, over all of K.
struct Strip {
  const uint8_t *panels;
  int64_t panel_bytes, superblocks, group;
  int64_t columns;  // of the output; the panels are ceil(columns / 16)
  const uint8_t *acts;
  int64_t acts_stride;  // bytes
  int64_t rows;
  float *out;  // (rows, columns)
  int64_t out_stride;  // floats, of out and residual
  const float *bias;      // (columns) or null
  const float *residual;  // (rows, columns) or null
};

struct Projection;

// From so many rows on a kernel may want a projection whole.
constexpr int64_t WIDE_ROWS = 64;

struct MatmulKernels {
  // Indexed by Arithmetic: a row of k values becomes ceil(k / 256) superblocks, padded with zeros.
  void (*prepare[3])(const float *x, int64_t k, void *acts);
  void (*strips[KIND_COUNT])(const Strip &);
  // A projection of at least WIDE_ROWS prepared rows, with the same bits as by strips; null where there is nothing better.
  // It runs the pool itself.
  void (*wide[KIND_COUNT])(const Projection &, const uint8_t *acts, int64_t acts_stride, int64_t rows) = {};
};

extern const MatmulKernels portable_matmul;
extern const MatmulKernels avx512_matmul;
extern const MatmulKernels avx2_matmul;
extern const MatmulKernels avx_vnni_matmul;
extern const MatmulKernels neon_dotprod_matmul;
extern const MatmulKernels neon_i8mm_matmul;
extern const MatmulKernels sme_matmul;

// One output of a matmul: out = x W^T (+ bias) (+ residual), (rows, panels.rows). `residual` and x may be `out`.
struct Projection {
  const Panels *panels;
  const float *bias, *residual;
  float *out;
};

// Rows of activations (rows, cols), which are normed on their way in where `norm` (cols) is given.
struct Input {
  const float *x;
  int64_t rows, cols;
  const float *norm = nullptr;
  float eps = 0;
};

// All projections of the input, which is brought into each form it is needed in once.
void matmul(const Input &input, std::span<const Projection> projections);

// out = residual + down(silu(gate(x)) * up(x)), in blocks of rows so that the hidden activations stay bounded.
// The outputs of `gate` and `up` are the caller's to leave null; `down` has the residual and the output.
struct GatedProjections {
  Projection gate, up, down;
};
void gated_matmul(const Input &input, const GatedProjections &mlp);

}  // namespace puna
