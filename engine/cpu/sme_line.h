// The line of work of one SME unit: panels of B are made ready, multiplied one after the other, and their sums taken away.
//
//   any thread       decode   step s + 2   step s + 3
//   the unit's own   multiply step s + 1
//   any thread       finish   step s
//
// The unit's own thread waits for nothing that nobody has begun: what is missing it does itself. So a line ends whatever the
// other threads do, and with one thread as well.
#pragma once

#include <atomic>
#include <cstdint>

#include "sme_blocking.h"

namespace puna {

inline void relax_core() {
#if defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Work has decode_items(), finish_items(), and open(step), which says whether there is such a step. For those there are
//   decode(step, item)   writes slot step % B_SLOTS, when that step of before is multiplied
//   multiply(step)       reads it, writes slot step % SUM_SLOTS of the sums, when that step of before is finished
//   finish(step, item)   reads that
// Items of a step are independent. Steps finish in order.
template <class Work>
class Line {
 public:
  explicit Line(Work &work) : work_(work), decodes_(work.decode_items()), finishes_(work.finish_items()) {}

  // By one thread, which is the only one that enters streaming mode for this line.
  void drive() {
    int64_t step = 0;
    for (; work_.open(step); ++step) {
      while (!is_decoded(step))
        if (!decode_one()) relax_core();
      while (!is_finished(step - SUM_SLOTS))
        if (!finish_one()) relax_core();
      work_.multiply(step);
      multiplied_.store(step + 1, std::memory_order_release);
    }
    while (!is_finished(step - 1))
      if (!finish_one()) relax_core();
    over_.store(true, std::memory_order_release);
  }

  // By any thread: one item, if there is one to do now.
  bool help() { return finish_one() || decode_one(); }
  bool over() const { return over_.load(std::memory_order_acquire); }

 private:
  bool is_decoded(int64_t step) const {
    return decoded_[step % B_SLOTS].done.load(std::memory_order_acquire) >= (step / B_SLOTS + 1) * decodes_;
  }
  bool is_finished(int64_t step) const { return finished_.load(std::memory_order_acquire) >= (step + 1) * finishes_; }

  bool decode_one() {
    int64_t ticket = next_decode_.load(std::memory_order_relaxed);
    while (ticket / decodes_ < multiplied_.load(std::memory_order_acquire) + B_SLOTS  // else its slot is still read
           && work_.open(ticket / decodes_)) {
      if (!next_decode_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_relaxed)) continue;
      work_.decode(ticket / decodes_, ticket % decodes_);
      decoded_[ticket / decodes_ % B_SLOTS].done.fetch_add(1, std::memory_order_release);
      return true;
    }
    return false;
  }

  bool finish_one() {
    int64_t ticket = next_finish_.load(std::memory_order_relaxed);
    while (ticket / finishes_ < multiplied_.load(std::memory_order_acquire) && is_finished(ticket / finishes_ - 1)) {
      if (!next_finish_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_relaxed)) continue;
      work_.finish(ticket / finishes_, ticket % finishes_);
      finished_.fetch_add(1, std::memory_order_release);
      return true;
    }
    return false;
  }

  struct alignas(128) Count {
    std::atomic<int64_t> done{0};
  };
  Work &work_;
  const int64_t decodes_, finishes_;
  Count decoded_[B_SLOTS];  // items in all that a slot has seen
  alignas(128) std::atomic<int64_t> next_decode_{0};
  alignas(128) std::atomic<int64_t> next_finish_{0};
  alignas(128) std::atomic<int64_t> finished_{0};
  alignas(128) std::atomic<int64_t> multiplied_{0};
  std::atomic<bool> over_{false};
};

}  // namespace puna
