// A program for this machine: lines of steps with threads that help, on work that only notes who reads and writes what. Also
// the blocking. Prints what is broken, and "ok" if nothing is.
#include <cstdio>
#include <thread>
#include <vector>

#include "sme_blocking.h"
#include "sme_line.h"

using namespace puna;

namespace {

std::atomic<int> failures{0};
void want(bool holds, const char *what, int64_t a = 0, int64_t b = 0) {
  if (!holds && ++failures < 20) std::printf("%s %lld %lld\n", what, static_cast<long long>(a), static_cast<long long>(b));
}

// Slots are plain memory: a sanitizer sees whoever comes too early.
class Noted {
 public:
  Noted(int64_t steps, int64_t decodes, int64_t finishes)
      : steps_(steps), decodes_(decodes), finishes_(finishes), b_(B_SLOTS, std::vector<int64_t>(decodes, -1)),
        sums_(SUM_SLOTS, -1), outputs_(finishes, -1) {}

  int64_t decode_items() const { return decodes_; }
  int64_t finish_items() const { return finishes_; }
  bool open(int64_t step) { return step < steps_; }
  void decode(int64_t step, int64_t item) { b_[step % B_SLOTS][item] = step; }
  void multiply(int64_t step) {
    for (const int64_t found : b_[step % B_SLOTS]) want(found == step, "B of another step", step, found);
    sums_[step % SUM_SLOTS] = step;
  }
  void finish(int64_t step, int64_t item) {
    want(sums_[step % SUM_SLOTS] == step, "sums of another step", step, sums_[step % SUM_SLOTS]);
    want(outputs_[item] == step - 1, "outputs out of order", step, outputs_[item]);
    outputs_[item] = step;
  }
  void check() const {
    for (const int64_t last : outputs_) want(last == steps_ - 1, "not finished", last, steps_);
  }

 private:
  const int64_t steps_, decodes_, finishes_;
  std::vector<std::vector<int64_t>> b_;
  std::vector<int64_t> sums_, outputs_;
};

void line(int64_t steps, int64_t decodes, int64_t finishes, int helpers) {
  Noted work(steps, decodes, finishes);
  Line<Noted> line(work);
  std::vector<std::thread> threads;
  for (int i = 0; i < helpers; ++i)
    threads.emplace_back([&] {
      while (!line.over())
        if (!line.help()) std::this_thread::yield();
    });
  line.drive();
  for (auto &thread : threads) thread.join();
  work.check();
}

void blocking() {
  for (const OperandBytes &size : {F32_OPERANDS, I16_OPERANDS})
    for (const int64_t cache : {1 << 20, 4 << 20, 12 << 20, 16 << 20, 32 << 20})
      for (const int64_t rows : {64, 100, 512})
        for (const int64_t columns : {16, 64, 1000, 14336})
          for (const int64_t k : {256, 700, 4096, 14336}) {
            const Blocking block = blocking_of(cache, size, rows, columns, k);
            want(block.rows % TILE_ROWS == 0 && block.columns % WIDE_COLUMNS == 0 && block.k % SUPERBLOCK == 0, "not whole");
            want(resident_bytes(block, size) <= cache / 2, "does not fit", cache, resident_bytes(block, size));
            want(block.columns < columns + WIDE_COLUMNS && block.k < k + SUPERBLOCK, "wider than the matrix");
            // What MpGEMM ships, as far as it fits, is never better.
            const Blocking theirs{rounded_up(rows, TILE_ROWS), std::min<int64_t>(256, rounded_up(columns, WIDE_COLUMNS)),
                                  std::min<int64_t>(1024, rounded_up(k, SUPERBLOCK))};
            const bool fits = resident_bytes(theirs, size) <= cache / 2;
            want(!fits || intensity(theirs, size) <= intensity(block, size), "worse", rows, k);
          }
}

}  // namespace

int main() {
  for (const int helpers : {0, 1, 3})
    for (const int64_t steps : {1, 2, 3, 7, 300})
      for (const int64_t items : {1, 4, 5}) line(steps, items, 6 - items, helpers);
  blocking();
  if (!failures) std::puts("ok");
  return failures > 0;
}
