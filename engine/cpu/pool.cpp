// The pool's two waits: workers for a round, the caller for its end.
#include "pool.h"

#include <algorithm>
#include <cassert>
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace puna {
namespace {

// Of what a range has left, so much is claimed at once: a claim drains the core's queues, and memory waits meanwhile, while
// small claims in the end let threads end together.
constexpr int64_t SHARE = 4;
// Longer than the gap between two matrices of a layer, far shorter than a scheduler's time slice.
constexpr auto SPIN = std::chrono::microseconds(200);

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::unique_ptr<Pool> the_pool;

}  // namespace

Pool &pool() {
  if (!the_pool) the_pool = std::make_unique<Pool>(1);
  return *the_pool;
}

void set_threads(int threads) { the_pool = std::make_unique<Pool>(threads); }

Pool::Pool(int threads) : threads_(std::max(threads, 1)), ranges_(new Range[threads_]) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { loop(i); });
  } catch (...) {  // the system has no more threads for us
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto &worker : workers_) worker.join();
}

void Pool::start(int64_t units, Call call, const void *context) {
  assert(units <= UINT32_MAX);
  call_.store(call, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  units_.store(units, std::memory_order_relaxed);
  const uint64_t round = round_.load(std::memory_order_relaxed) + 1;
  const auto count = [&](int range) { return first_unit(units, range + 1) - first_unit(units, range); };
  for (int i = 0; i < threads_; ++i) {
    ranges_[i].finished.store(0, std::memory_order_relaxed);
    ranges_[i].ticket.store(round << 32 | static_cast<uint64_t>(count(i)), std::memory_order_relaxed);
  }
  // Sequentially consistent with parked_: a worker that is about to park sees the round, or we see it parked.
  round_.store(round);
  if (parked_.load() > 0) {
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  work(0);
  const auto deadline = std::chrono::steady_clock::now() + SPIN;
  for (int i = 0; i < threads_; ++i) {
    while (ranges_[i].finished.load(std::memory_order_acquire) < count(i)) {
      if (std::chrono::steady_clock::now() < deadline) relax();
      else std::this_thread::yield();
    }
  }
}

void Pool::work(int thread) noexcept {
  const uint64_t round = round_.load();
  const Call call = call_.load(std::memory_order_relaxed);
  const void *const context = context_.load(std::memory_order_relaxed);
  const int64_t units = units_.load(std::memory_order_relaxed);
  for (int i = thread; i < thread + threads_; ++i) {
    Range &range = ranges_[i % threads_];
    const int64_t end = first_unit(units, i % threads_ + 1);
    uint64_t ticket = range.ticket.load();
    while (ticket >> 32 == (round & UINT32_MAX) && (ticket & UINT32_MAX) > 0) {
      const int64_t left = ticket & UINT32_MAX, claimed = std::max(left / SHARE, int64_t{1});
      if (!range.ticket.compare_exchange_weak(ticket, ticket - claimed)) continue;
      call(context, end - left, end - left + claimed);
      range.finished.fetch_add(claimed, std::memory_order_release);
      ticket = range.ticket.load();
    }
  }
}

void Pool::loop(int thread) {
  uint64_t seen = 0;
  const auto fresh = [&] { return stop_ || round_.load() != seen; };
  while (true) {
    const auto deadline = std::chrono::steady_clock::now() + SPIN;
    while (!fresh() && std::chrono::steady_clock::now() < deadline) relax();
    if (!fresh()) {
      std::unique_lock lock(mutex_);
      parked_.fetch_add(1);
      wake_.wait(lock, fresh);
      parked_.fetch_sub(1);
    }
    if (stop_) return;
    seen = round_.load();
    work(thread);
  }
}

}  // namespace puna
