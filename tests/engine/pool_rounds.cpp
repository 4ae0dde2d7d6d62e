// Rounds of the pool as fast as they go, of ever different sizes, with more threads than cores: prints how many rounds
// ended with a unit that had not run exactly once.
#include <array>
#include <cstdio>

#include "pool.h"

int main() {
  puna::Pool pool(8);
  std::array<std::atomic<int>, 64> runs{};
  int wrong = 0;
  for (int round = 0; round < 150'000; ++round) {
    const int64_t units = 2 + round * 7LL % 61;
    for (auto &count : runs) count = 0;
    pool.run(units, [&](int64_t unit) { ++runs[unit]; });
    for (int64_t unit = 0; unit < 64; ++unit) {
      if (runs[unit] == (unit < units)) continue;
      ++wrong;
      break;
    }
  }
  std::printf("%d\n", wrong);
}
