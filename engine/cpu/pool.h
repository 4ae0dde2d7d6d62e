// The one pool of CPU threads: workers spin for a moment after work, then park; a parked pool costs no CPU.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace puna {

// Runs units of work on all threads. Each thread has a range of neighbouring units, since memory is read fastest on and
// on (a quarter faster than in chunks of 128 KB that threads take in turns); one that has none left helps the others. Units
// may be uneven, for a claim takes a part of those that are left; which thread runs a unit must never change its result
// (law 1). One caller at a time: the stream's own thread, which works as thread 0. A round is over when its units are, so
// a worker that lost its core to another process holds nobody up unless it holds units.
class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool &) = delete;
  Pool &operator=(const Pool &) = delete;

  int threads() const { return threads_; }

  // Calls f(unit) for each unit in [0, units) and returns when all have returned.
  template <class F>
  void run(int64_t units, const F &f) {
    run_spans(units, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) f(u);
    });
  }

  // Calls f(begin, end) for spans that are [0, units) together.
  template <class F>
  void run_spans(int64_t units, const F &f) {
    if (units <= 0) return;
    if (units == 1 || threads_ == 1) return f(0, units);
    start(units, [](const void *context, int64_t begin, int64_t end) { (*static_cast<const F *>(context))(begin, end); }, &f);
  }

 private:
  using Call = void (*)(const void *context, int64_t begin, int64_t end);
  void start(int64_t units, Call call, const void *context);
  void work(int thread) noexcept;  // a unit that threw would leave its round open for ever
  void loop(int thread);
  void stop();

  int threads_;
  std::vector<std::thread> workers_;
  // The round at hand. They change only between rounds, when there is nothing to claim; so whoever claims a unit has
  // read what belongs to it, provided that he read it after the round's number.
  std::atomic<Call> call_{nullptr};
  std::atomic<const void *> context_{nullptr};
  std::atomic<int64_t> units_{0};
  // The round's number is set after everything else.
  std::atomic<uint64_t> round_{0};
  struct alignas(64) Range {
    // The number of the round in the high 32 bits, how many units are left to claim in the low: a claim counts for one
    // round alone, and none succeeds once the range has no units left, whatever a latecomer takes for their number.
    std::atomic<uint64_t> ticket{0};
    std::atomic<int64_t> finished{0};
  };
  std::unique_ptr<Range[]> ranges_;  // of each thread
  int64_t first_unit(int64_t units, int range) const { return units * range / threads(); }
  std::atomic<bool> stop_{false};
  std::atomic<int> parked_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// The pool that kernels run on. Set before the first kernel runs; 1 thread until then.
Pool &pool();
void set_threads(int threads);

}  // namespace puna
