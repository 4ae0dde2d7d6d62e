// The probe's clock: each measurement runs on the pool, as kernels do.
#include "probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"
#include "pool.h"

namespace puna {
namespace {

constexpr int64_t CHUNK = 1 << 20;      // bytes that a thread claims at once
constexpr int64_t HUGE_PAGE = 2 << 20;  // panels lie in such pages too
constexpr double WARM_UP = 0.05, REPETITION = 0.002;  // seconds: a clock that has sped up, a slice that nobody interrupts
constexpr int REPETITIONS = 60;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// A row of kernels without a probe of its own is measured by what every machine runs.
const Probe &probe() {
  static const Probe *const known[] = {
#if defined(__x86_64__)
      &avx512_probe, &avx_vnni_probe, &avx2_probe,
#endif
#if defined(__aarch64__)
      &neon_i8mm_probe, &neon_probe,
#endif
  };
  const std::string_view name = kernels().name;
  for (const Probe *p : known) {
    if (p->kernels == name) return *p;
  }
  return portable_probe;
}

// Operations a second of one round on every thread. One in which a thread came late counts less, and the best is taken.
double rate(int64_t (*work)(int64_t), int64_t rounds) {
  std::atomic<int64_t> done{0};
  const double began = now();
  pool().run(pool().threads(), [&](int64_t) { done += work(rounds); });
  return static_cast<double>(done) / (now() - began);
}

double peak(int64_t (*work)(int64_t)) {
  int64_t rounds = 1000;
  const double began = now();
  while (now() - began < WARM_UP) {
    const double start = now();
    rate(work, rounds);
    if (now() - start < REPETITION) rounds += rounds / 4;
  }
  double best = 0;
  for (int i = 0; i < REPETITIONS; ++i) best = std::max(best, rate(work, rounds));
  return best;
}

// Exclusive or of a chunk: as little arithmetic as keeps the loads, in as many sums as there are vector registers everywhere.
using Words = uint64_t __attribute__((vector_size(16)));
uint64_t read(const Words *p) {
  constexpr int SUMS = 16;
  Words sums[SUMS] = {};
  for (const Words *end = p + CHUNK / sizeof(Words); p < end; p += SUMS) {
#pragma GCC unroll 16
    for (int i = 0; i < SUMS; ++i) sums[i] ^= p[i];
  }
  for (int i = 1; i < SUMS; ++i) sums[0] ^= sums[i];
  return sums[0][0] ^ sums[0][1];
}

}  // namespace

double int8_peak() { return peak(probe().int8); }
double fp32_peak() { return peak(probe().fp32); }

double read_rate(int64_t bytes) {
  // Kept from call to call: readings stand between short bursts of work, and fresh pages would take longer than they do.
  static std::unique_ptr<uint8_t, decltype(&std::free)> data(nullptr, &std::free);
  static int64_t held = 0;
  const int64_t units = std::max<int64_t>(1, bytes / CHUNK);
  if (held < units) {
    const int64_t size = (units * CHUNK + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    held = 0;
    data.reset(static_cast<uint8_t *>(std::aligned_alloc(HUGE_PAGE, size)));
    if (!data) throw std::bad_alloc();
#if defined(__linux__)
    madvise(data.get(), size, MADV_HUGEPAGE);
#endif
    pool().run(units, [&](int64_t u) { std::memset(data.get() + u * CHUNK, 1 + static_cast<int>(u % 255), CHUNK); });
    held = units;
  }
  std::atomic<uint64_t> sink{0};
  const auto pass = [&] {
    pool().run(units, [&](int64_t u) { sink ^= read(reinterpret_cast<const Words *>(data.get() + u * CHUNK)); });
  };
  pass();  // after other work the first is up to a seventh slower than those that follow
  const double began = now();
  pass();
  return static_cast<double>(units * CHUNK) / (now() - began);
}

}  // namespace puna
