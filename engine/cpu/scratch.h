// Memory that a thread keeps between calls: it grows to the most that was asked for and is never given back.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace puna {

class Scratch {
 public:
  // On a cache line; what was there before may be gone.
  uint8_t *bytes(size_t wanted) {
    if (wanted > size_) {
      data_.reset(static_cast<uint8_t *>(std::aligned_alloc(64, (wanted + 63) / 64 * 64)));
      size_ = data_ ? wanted : 0;
      if (!data_) throw std::bad_alloc();
    }
    return data_.get();
  }
  float *floats(size_t wanted) { return reinterpret_cast<float *>(bytes(wanted * sizeof(float))); }

 private:
  struct Free {
    void operator()(uint8_t *memory) const { std::free(memory); }
  };
  std::unique_ptr<uint8_t, Free> data_;
  size_t size_ = 0;
};

}  // namespace puna
