// The portable kernels' multiplications: whatever the compiler makes of plain loops.
#include <cmath>

#include "probe.h"

namespace puna {
namespace {

constexpr int N = 64;

// The compiler believes that the bytes may have changed.
template <class T>
void forget(T *values) {
  asm volatile("" : : "r"(values) : "memory");
}

int64_t int8(int64_t rounds) {
  uint8_t weights[N] = {};
  int8_t acts[N] = {};
  int32_t sums[N] = {};
  for (int64_t round = 0; round < rounds; ++round) {
    forget(weights);
    forget(acts);
    for (int i = 0; i < N; ++i) sums[i] += weights[i] * acts[i];
    forget(sums);
  }
  return rounds * N * 2;
}

int64_t fp32(int64_t rounds) {
  float weights[N] = {}, sums[N] = {};
  for (int64_t round = 0; round < rounds; ++round) {
    forget(weights);
    for (int i = 0; i < N; ++i) sums[i] = std::fma(weights[i], 0.5f, sums[i]);
    forget(sums);
  }
  return rounds * N * 2;
}

}  // namespace

const Probe portable_probe{"portable", int8, fp32};

}  // namespace puna
