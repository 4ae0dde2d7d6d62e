// A whole projection of many rows by SME.
#pragma once

#include <cstdint>

#include "matmul.h"
#include "sme_blocking.h"

namespace puna {

// Threads that run units of work as Pool does; and what they work with.
struct Crew {
  int64_t threads;
  void (*run)(int64_t units, void (*call)(const void *context, int64_t unit), const void *context);
};
struct SmeMachine {
  Crew crew;
  int64_t units;  // of SME
  int64_t cache_bytes;
  uint8_t *(*scratch)(size_t bytes);  // aligned to 128 bytes; valid until the next call
  const MatmulKernels *strips;        // for threads that have nothing else to do; null: they wait
};

// Rows of activations as prepared for the arithmetic of the panels.
struct WideActs {
  const uint8_t *data;
  int64_t stride, rows;
};

// Dense panels, by the law of dense: out, bias and residual of `p` are those of the first row.
void sme_dense(const Projection &p, const WideActs &acts, const SmeMachine &machine);
// Subscaled panels, by the law of subscaled.
void sme_subscaled(const Projection &p, const WideActs &acts, const SmeMachine &machine);
// Panels of any kind, decoded to float32 and multiplied by the law of dense. That is another arithmetic than the kernels of
// quantised panels have, so by law 1 no serving on the CPU may choose it; it is for a device class of its own.
void sme_decoded(const Projection &p, const WideActs &float_acts, const SmeMachine &machine);

}  // namespace puna
