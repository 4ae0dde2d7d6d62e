// The pool's two waits: workers for a round, the caller for its end.
#include "pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace puna {
namespace {

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

Pool::Pool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { loop(); });
}

Pool::~Pool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto &worker : workers_) worker.join();
}

void Pool::start(int64_t units, Call call, const void *context) {
  call_ = call;
  context_ = context;
  units_ = units;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1);  // sequentially consistent with parked_: a worker sees the round, or we see it parked
  if (parked_.load() > 0) {
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  work();
  // A worker may have lost its core to another process, so the wait yields after a while.
  const auto deadline = std::chrono::steady_clock::now() + SPIN;
  while (busy_.load(std::memory_order_acquire) > 0) {
    if (std::chrono::steady_clock::now() < deadline) relax();
    else std::this_thread::yield();
  }
}

void Pool::work() {
  for (int64_t unit; (unit = next_.fetch_add(1, std::memory_order_relaxed)) < units_;) call_(context_, unit);
}

void Pool::loop() {
  uint64_t seen = 0;
  while (true) {
    const auto deadline = std::chrono::steady_clock::now() + SPIN;
    while (round_.load(std::memory_order_acquire) == seen && !stop_ && std::chrono::steady_clock::now() < deadline) relax();
    if (round_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      parked_.fetch_add(1);
      wake_.wait(lock, [&] { return stop_ || round_.load() != seen; });
      parked_.fetch_sub(1);
    }
    if (stop_) return;
    seen = round_.load(std::memory_order_acquire);
    work();
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace puna
