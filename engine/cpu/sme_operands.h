// What the cores do around SME: weights become operands, sums become outputs.
#pragma once

#include <cstdint>

#include "matmul.h"
#include "sme.h"

namespace puna {

// Some superblocks of one panel.
struct PanelPart {
  const Panels *panels;
  int64_t panel, superblock, superblocks;

  const uint8_t *at() const {
    return panels->panel(panel) + superblock * (panels->panel_bytes / panels->superblocks);
  }
};

// Whether minima take part, and in how many steps for a block of 128.
constexpr int64_t min_steps(const PanelKind &kind) { return !kind.mins ? 0 : kind.sub == 16 ? SUM_STEPS : PAIR_STEPS; }

// Scales of a block of 128 x 64 columns: d, dmin.
struct BlockScales {
  float d[WIDE_COLUMNS], dmin[WIDE_COLUMNS];
};

// A quarter of B for puna_sme_i16: 16 of the 64 columns, for subscaled kinds; and their scales, per block of 128.
void i16_operand(const PanelPart &part, int64_t quarter, int16_t *b, BlockScales *scales);

// A quarter of B for puna_sme_f32, for all kinds; bit for bit what decode_row gives.
void f32_operand(const PanelPart &part, int64_t quarter, float *b);

// 16 rows x 16 columns of `acc` go on with some blocks of 128, as the law of subscaled panels says.
struct BlockSums {
  const int32_t *sums;  // of the first block, products and then minima TILE_FLOATS behind them
  int64_t stride;       // from block to block
  bool mins;
  const BlockScales *scales;
  int64_t column;           // of the 64
  const float *act_scales;  // (blocks, 16)
  int64_t blocks;
};
void add_blocks(const BlockSums &from, bool fresh, float acc[TILE_ROWS * COLUMNS]);

// Outputs to where they go, with bias and residual.
struct Corner {
  float *out;
  const float *bias, *residual;  // or null
  int64_t stride, rows, columns;
};
void finish(const float acc[TILE_ROWS * COLUMNS], const Corner &to);

}  // namespace puna
