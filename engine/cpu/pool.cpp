// The pool's two waits: workers for a round, the caller for its end.
#include "pool.h"

#include <cassert>
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
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { loop(); });
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
  finished_.store(0, std::memory_order_relaxed);
  // Sequentially consistent with parked_: a worker that is about to park sees the round, or we see it parked.
  ticket_.store(((ticket_.load() >> 32) + 1) << 32 | static_cast<uint64_t>(units));
  if (parked_.load() > 0) {
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  work();
  const auto deadline = std::chrono::steady_clock::now() + SPIN;
  while (finished_.load(std::memory_order_acquire) < units) {
    if (std::chrono::steady_clock::now() < deadline) relax();
    else std::this_thread::yield();
  }
}

void Pool::work() noexcept {
  uint64_t ticket = ticket_.load();
  const uint64_t round = ticket >> 32;
  const Call call = call_.load(std::memory_order_relaxed);
  const void *const context = context_.load(std::memory_order_relaxed);
  const int64_t units = units_.load(std::memory_order_relaxed);
  while (ticket >> 32 == round && (ticket & UINT32_MAX) > 0) {
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1)) continue;
    call(context, units - static_cast<int64_t>(ticket & UINT32_MAX));
    finished_.fetch_add(1, std::memory_order_release);
    ticket = ticket_.load();
  }
}

void Pool::loop() {
  uint64_t seen = 0;
  const auto fresh = [&] { return stop_ || ticket_.load() >> 32 != seen; };
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
    seen = ticket_.load() >> 32;
    work();
  }
}

}  // namespace puna
