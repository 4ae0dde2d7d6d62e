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

// Outputs are there in two generations, since the last ones are still being taken away.
constexpr int64_t resident_bytes(const Blocking &block, const OperandBytes &size) {
  return block.rows * block.k * size.a + B_SLOTS * WIDE_COLUMNS * block.k * size.b + 2 * 4 * block.rows * block.columns +
         SUM_SLOTS * WIDE_COLUMNS * block.rows * block.k / size.sum_k * size.sums;
}

// Multiply-adds for a byte that crosses the border of the cache, after MpGEMM's model (arXiv 2512.21473): A is read once for
// each block of columns, B once for each block of rows, outputs come and go once for each block of K.
constexpr double intensity(const Blocking &block, const OperandBytes &size) {
  const int64_t outputs = block.rows * block.columns;
  const int64_t moved = block.rows * block.k * size.a + block.columns * block.k * size.b + 2 * 4 * outputs;
  return static_cast<double>(outputs) * static_cast<double>(block.k) / static_cast<double>(moved);
}

constexpr int64_t MOST_COLUMNS = 16 * WIDE_COLUMNS;

// The block of the most intensity that fits half of the cache, as in the model; its bound on pages is left out, since our
// operands are packed and lie page after page. Rows are cut only where nothing fits uncut, because each block of rows
// decodes all weights again. Cuts are even, so that no block is much smaller than the others.
constexpr Blocking blocking_of(int64_t cache_bytes, const OperandBytes &size, int64_t rows, int64_t columns, int64_t k) {
  const int64_t most_columns = std::min(MOST_COLUMNS, rounded_up(std::max<int64_t>(columns, 1), WIDE_COLUMNS));
  const auto part = [](int64_t n, int64_t cuts, int64_t unit) {
    return rounded_up((std::max<int64_t>(n, 1) + cuts - 1) / cuts, unit);
  };
  for (int64_t row_cuts = 1;; row_cuts *= 2) {
    Blocking best{};
    double most = 0;
    for (int64_t k_cuts = 1; k_cuts <= part(k, 1, SUPERBLOCK) / SUPERBLOCK; ++k_cuts) {
      for (int64_t wide = WIDE_COLUMNS; wide <= most_columns; wide += WIDE_COLUMNS) {
        const Blocking block{part(rows, row_cuts, TILE_ROWS), wide, part(k, k_cuts, SUPERBLOCK)};
        const double found = intensity(block, size);
        if (resident_bytes(block, size) <= cache_bytes / 2 && found > most) most = found, best = block;
      }
    }
    if (most > 0) return best;
    if (part(rows, row_cuts, TILE_ROWS) == TILE_ROWS) return {TILE_ROWS, WIDE_COLUMNS, SUPERBLOCK};
  }
}

}  // namespace puna
