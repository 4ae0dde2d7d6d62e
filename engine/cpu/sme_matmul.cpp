// The matmul kernels of a CPU with SME: NEON's, and for many rows whole projections.
#include <cstdlib>
#include <memory>
#include <new>

#include "pool.h"
#include "sme_units.h"
#include "sme_wide.h"

namespace puna {
namespace {

struct Free {
  void operator()(uint8_t *p) const { std::free(p); }
};

// Grows and is never given back: bounded by the rows of a slab, and the next layer asks for the same again.
uint8_t *scratch(size_t bytes) {
  thread_local std::unique_ptr<uint8_t, Free> data;
  thread_local size_t size = 0;
  if (bytes > size) {
    size = rounded_up(static_cast<int64_t>(bytes), 16 << 10);  // a page of Apple's
    data.reset();
    data.reset(static_cast<uint8_t *>(std::aligned_alloc(16 << 10, size)));
    if (!data) {
      size = 0;
      throw std::bad_alloc();
    }
  }
  return data.get();
}

SmeMachine machine() {
  const auto run = [](int64_t units, void (*call)(const void *, int64_t), const void *context) {
    pool().run(units, [&](int64_t unit) { call(context, unit); });
  };
  return {{pool().threads(), run}, sme_units().count, sme_units().cache_bytes, scratch, &neon_i8mm_matmul};
}

void dense(const Projection &p, const uint8_t *acts, int64_t acts_stride, int64_t rows) {
  sme_dense(p, {acts, acts_stride, rows}, machine());
}
void subscaled(const Projection &p, const uint8_t *acts, int64_t acts_stride, int64_t rows) {
  sme_subscaled(p, {acts, acts_stride, rows}, machine());
}

// Grouped kinds stay with the strips: a store of ZA for every 32 k costs as much as the products (see docs/sme.md).
MatmulKernels with_wide(MatmulKernels kernels) {
  for (size_t kind = 0; kind < KIND_COUNT; ++kind) {
    if (KINDS[kind].arithmetic == Arithmetic::dense) kernels.wide[kind] = dense;
    if (KINDS[kind].arithmetic == Arithmetic::subscaled) kernels.wide[kind] = subscaled;
  }
  return kernels;
}

}  // namespace

const MatmulKernels sme_matmul = with_wide(neon_i8mm_matmul);

}  // namespace puna
