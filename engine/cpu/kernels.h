// What a CPU can do is a row of pointers; the best row that runs here is chosen once.
#pragma once

#include "attention.h"
#include "matmul.h"
#include "rows.h"

namespace puna {

struct Kernels {
  const char *name;  // the word that PUNA_CPU takes
  bool (*runs_here)();
  const MatmulKernels *matmul;
  const RowKernels *rows;
  const AttentionKernels *attention;
};

// The row in use: the first that runs here, best first, or the one that PUNA_CPU names. Throws if that one does not run.
const Kernels &kernels();

}  // namespace puna
