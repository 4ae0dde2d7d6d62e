// A superblock of one row, out of the file's packing: plain codes, and scales ready for a panel.
#pragma once

#include <cstdint>

#include "panels.h"

namespace puna {

struct Staged {
  uint8_t codes[SUPERBLOCK];
  uint16_t d, dmin;                   // subscaled
  uint8_t scales[16], mins[16];       // subscaled, one for each `sub` values
  uint8_t numbers[8][4], biases[8][4];  // grouped, one for each group, in the format's own type
};

// One row of a tensor in its file's form. GGUF formats have only codes.
struct RowSource {
  const uint8_t *codes, *scales, *biases;
  int64_t cols;
};

// Fills superblock `b` of a row; what lies past `cols` keeps the zeros that `out` came with.
using StageKernel = void (*)(const RowSource &row, int64_t b, Staged &out);
StageKernel stage_of(Format format, Number scales);

}  // namespace puna
