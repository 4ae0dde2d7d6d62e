// Pages as bytes: plain copies between a page of every layer and a run of memory.
#include "page_store.h"

#include <cstring>
#include <stdexcept>

namespace puna {
namespace {

size_t bytes_of(const mlx::core::array &pages) { return pages.shape(1) * pages.itemsize(); }

// The page of one layer. What the pool's arrays hold is written in place, which MLX's arrays do not foresee.
char *at(const mlx::core::array &pages, int64_t page) {
  if (page < 0 || page >= pages.shape(0)) throw std::invalid_argument("[pages] a page lies outside of the pool");
  return const_cast<char *>(pages.data<char>()) + page * bytes_of(pages);
}

}  // namespace

size_t page_bytes(const LayerPages &layers) {
  size_t sum = 0;
  for (const auto &pages : layers) sum += bytes_of(pages);
  return sum;
}

void copy_page(const LayerPages &layers, int64_t source, int64_t target) {
  for (const auto &pages : layers) std::memmove(at(pages, target), at(pages, source), bytes_of(pages));
}

void read_page(const LayerPages &layers, int64_t page, char *to) {
  for (const auto &pages : layers) {
    std::memcpy(to, at(pages, page), bytes_of(pages));
    to += bytes_of(pages);
  }
}

void write_page(const LayerPages &layers, int64_t page, const char *from) {
  for (const auto &pages : layers) {
    std::memcpy(at(pages, page), from, bytes_of(pages));
    from += bytes_of(pages);
  }
}

}  // namespace puna
