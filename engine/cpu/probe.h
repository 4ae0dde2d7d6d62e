// What the machine can do, measured: the rate at which the pool reads memory, and the operations a second of its kernels' instructions.
#pragma once

#include <cstdint>
#include <string_view>

namespace puna {

// The instructions that a row of kernels multiplies with, alone: no loads, no dependence but on their own sums.
struct Probe {
  std::string_view kernels;  // the name of the row
  // Runs so many rounds and returns the operations done; a multiply-add is two.
  int64_t (*int8)(int64_t rounds);
  int64_t (*fp32)(int64_t rounds);
};

extern const Probe portable_probe, avx2_probe, avx_vnni_probe, avx512_probe, neon_probe, neon_i8mm_probe;

// Operations a second of all threads of the pool together, with the kernels in use; the best of many short repetitions.
double int8_peak();
double fp32_peak();

// Bytes a second at which all threads of the pool read a buffer of so many bytes, a second time. Make it several times larger
// than the last cache.
double read_rate(int64_t bytes);

// N independent sums, each of which takes `step` in every round, and the compiler can leave none of them out.
template <int N, class V, class F>
inline void chains(V zero, int64_t rounds, const F &step) {
  V sums[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) sums[i] = zero;
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      sums[i] = step(sums[i]);
#if defined(__x86_64__)
      asm volatile("" : "+x"(sums[i]));
#else
      asm volatile("" : "+w"(sums[i]));
#endif
    }
  }
}

}  // namespace puna
