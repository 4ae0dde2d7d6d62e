// What SME does: the kernels in assembly, who may run them, and the loop that multiplies whole projections with them.
#pragma once

#include <cstdint>

#include "matmul.h"

namespace puna {

constexpr int64_t TILE_ROWS = 16;     // rows of activations that ZA holds the outputs of
constexpr int64_t WIDE_COLUMNS = 64;  // and columns: four tiles, each of them a panel
constexpr int64_t TILE_FLOATS = TILE_ROWS * WIDE_COLUMNS;

// Tiles of 16 rows x one panel of 64 columns, over some steps of K:
//   a  for each tile (k, 16 rows);  b  (k, 64 columns);  c  for each tile (4, 16 rows, 16 columns)
struct SmeF32 {
  const float *a;
  int64_t a_tile_bytes;
  float *b;  // the first-round kernels write it, the other reads it
  float *c;
  int64_t k, tiles;
  int64_t carry;  // 0: c starts from zero; else it goes on
  const void *panels[4];  // first-round: where these k begin in the four panels of 16 columns
};

// The same in int16, the sums of each block of K apart:
//   a  for each tile (blocks, steps, gap, min_steps, skip), of which a step is (16 rows, 2 k)
//   b  (blocks, steps + min_steps, 64 columns, 2 k)
//   sums  for each tile (blocks, products and, with min_steps, minima negated; 4, 16 rows, 16 columns)
struct SmeI16 {
  const void *a;
  int64_t a_tile_bytes;
  const void *b;
  int32_t *sums;
  int64_t blocks, tiles, steps, min_steps;
  int64_t gap_bytes, skip_bytes;
};

// A block of 128 activations as operands: steps of 2 k, then of the negative sums of two 32, then of two 16.
constexpr int64_t I16_STEPS = 64, PAIR_STEPS = 2, SUM_STEPS = 4, I16_STEP_BYTES = 64;
constexpr int64_t I16_BLOCK_BYTES = (I16_STEPS + PAIR_STEPS + SUM_STEPS) * I16_STEP_BYTES;

extern "C" {
// The streaming vector length in bytes. May be called only where there is SME.
int64_t puna_sme_vector_bytes();
void puna_sme_f32(const SmeF32 *);
void puna_sme_f32_first_f32(const SmeF32 *);
void puna_sme_f32_first_f16(const SmeF32 *);
void puna_sme_f32_first_bf16(const SmeF32 *);
void puna_sme_i16(const SmeI16 *);
// Sixteen rows, of which some may be equal, become operands: (k up to a multiple of 16, 16 rows), zeros behind `count`.
void puna_sme_f32_pack(const float *const rows[TILE_ROWS], int64_t count, float *to);
void puna_sme_i16_pack(const Acts128 *const rows[TILE_ROWS], int64_t blocks, void *to);
}

}  // namespace puna
