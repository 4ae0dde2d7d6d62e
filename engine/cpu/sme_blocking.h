// How a projection is cut so that what SME streams over stays in the second-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "panels.h"
#include "sme.h"

namespace puna {

// What the operands of a kernel weigh.
struct OperandBytes {
  int64_t a, b;  // a value
  int64_t sums;  // an output of a block of K that leaves ZA apart from the others; 0 where ZA goes on
  int64_t sum_k;  // values of K in such a block
};
constexpr OperandBytes F32_OPERANDS{4, 4, 0, SUPERBLOCK};
constexpr OperandBytes I16_OPERANDS{3, 3, 8, 128};  // 2 bytes and the minima, rounded up

constexpr int64_t B_SLOTS = 3;    // panels of B: one is read, the next is ready, the one after is being written
constexpr int64_t SUM_SLOTS = 2;  // sums of a panel: one is written, one is read

// Rows, columns and values of K that are multiplied while they stay in cache.
struct Blocking {
  int64_t rows, columns, k;
  constexpr bool operator==(const Blocking &) const = default;
};

constexpr int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A block of A is passed once for each panel of B, outputs once for each block of K and in two generations.
constexpr int64_t resident_bytes(const Blocking &block, const OperandBytes &size) {
  return block.rows * block.k * size.a + B_SLOTS * WIDE_COLUMNS * block.k * size.b + 2 * 4 * block.rows * block.columns +
         SUM_SLOTS * WIDE_COLUMNS * block.rows * block.k / size.sum_k * size.sums;
}

// The most multiply-adds for a byte that crosses the border of the cache, after MpGEMM's model (arXiv 2512.21473): A is
// read once for each block of columns, B once for each block of rows, outputs twice for each block of K. Half of the cache is
// ours, as there; its bound on pages is not, since all operands are packed and lie page after page.
constexpr Blocking blocking_of(int64_t cache_bytes, const OperandBytes &size, int64_t rows, int64_t columns, int64_t k) {
  const int64_t most_rows = rounded_up(std::max<int64_t>(rows, 1), TILE_ROWS);
  const int64_t most_columns = rounded_up(std::max<int64_t>(columns, 1), WIDE_COLUMNS);
  const int64_t most_k = rounded_up(std::max<int64_t>(k, 1), SUPERBLOCK);
  Blocking best{TILE_ROWS, WIDE_COLUMNS, SUPERBLOCK};
  double most = 0;
  // Cuts are even, so that no block is much smaller than the others.
  for (int64_t row_cuts = 1; row_cuts <= most_rows / TILE_ROWS; row_cuts *= 2) {
    for (int64_t k_cuts = 1; k_cuts <= most_k / SUPERBLOCK; ++k_cuts) {
      for (int64_t at = 1; at <= 16; ++at) {
        const Blocking block{rounded_up((most_rows + row_cuts - 1) / row_cuts, TILE_ROWS),
                             std::min(at * WIDE_COLUMNS, most_columns),
                             rounded_up((most_k + k_cuts - 1) / k_cuts, SUPERBLOCK)};
        if (resident_bytes(block, size) > cache_bytes / 2) continue;
        const double work = static_cast<double>(block.rows) * block.columns * block.k;
        const double moved = static_cast<double>(block.rows * block.k * size.a + block.columns * block.k * size.b +
                                                 2 * 4 * block.rows * block.columns);
        if (work / moved > most) most = work / moved, best = block;
      }
    }
  }
  return best;
}

}  // namespace puna
