// A unit of work is the tokens of one page and KV head; keys are turned on the way, for they lie transposed in a page.
#include "page_tokens.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "attention_op.h"
#include "pool.h"

namespace puna {
namespace {

void require(bool holds, const char *what) {
  if (!holds) throw std::invalid_argument(std::string("[tokens of pages] ") + what);
}

// Tokens [first, first + count) of a sequence, of which some lie in each of its pages.
struct Tokens {
  char *pages, *tokens;
  const std::vector<int32_t> &table;
  int64_t first, count, heads, width;

  int64_t units() const { return count ? ((first + count - 1) / PAGE - first / PAGE + 1) * heads : 0; }

  // Of a unit, calls f(key, key_in_page, value, value_in_page, slots) of numbers as wide as Word: those of its tokens.
  template <class Word, class F>
  void unit(int64_t i, const F &f) const {
    const int64_t page = first / PAGE + i / heads, head = i % heads;
    const int64_t begin = std::max(first, page * PAGE), end = std::min(first + count, (page + 1) * PAGE);
    auto *lone = reinterpret_cast<Word *>(tokens) + ((begin - first) * 2 * heads + head) * width;
    auto *keys = reinterpret_cast<Word *>(pages) + (table[page] * 2 * heads + head) * PAGE * width;
    f(lone, keys + begin % PAGE, lone + heads * width, keys + heads * PAGE * width + begin % PAGE * width, end - begin);
  }
};

template <class Word>
void put(const Tokens &all) {
  const int64_t width = all.width, stride = 2 * all.heads * width;
  pool().run(all.units(), [&](int64_t i) {
    all.unit<Word>(i, [&](const Word *key, Word *keys, const Word *value, Word *values, int64_t tokens) {
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t d = 0; d < width; ++d) keys[d * PAGE + t] = key[t * stride + d];
        std::copy_n(value + t * stride, width, values + t * width);
      }
    });
  });
}

template <class Word>
void take(const Tokens &all) {
  const int64_t width = all.width, stride = 2 * all.heads * width;
  pool().run(all.units(), [&](int64_t i) {
    all.unit<Word>(i, [&](Word *key, const Word *keys, Word *value, const Word *values, int64_t tokens) {
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t d = 0; d < width; ++d) key[t * stride + d] = keys[d * PAGE + t];
        std::copy_n(values + t * width, width, value + t * stride);
      }
    });
  });
}

void check(const mx::array &pages, const std::vector<int32_t> &table, int64_t first, int64_t count, int64_t heads, int64_t width) {
  require(!quantised(kv_format(pages.dtype())), "quantised pages give no numbers");
  require(heads > 0 && width > 0 && pages.ndim() == 2, "pages are (pages, elements), tokens (n, 2, K, Dh)");
  require(pages.shape(1) == page_elements(heads, width, pages.dtype()), "pages are of other heads");
  require(first >= 0 && count >= 0 && first + count <= static_cast<int64_t>(table.size()) * PAGE, "tokens outgrow their pages");
  for (const int32_t page : table) require(page >= 0 && page < pages.shape(0), "a page lies outside of the pool");
}

// What the pool's arrays hold is written in place, which MLX's arrays do not foresee.
char *bytes_of(const mx::array &a) {
  require(a.is_available() && a.flags().row_contiguous, "an array does not lie plainly in memory");
  return const_cast<char *>(a.data<char>());
}

}  // namespace

void put_tokens(const mx::array &pages, const std::vector<int32_t> &table, int64_t first, const mx::array &tokens) {
  require(tokens.ndim() == 4 && tokens.shape(1) == 2 && tokens.dtype() == pages.dtype(), "tokens are (n, 2, K, Dh), as pages are");
  const int64_t count = tokens.shape(0), heads = tokens.shape(2), width = tokens.shape(3);
  check(pages, table, first, count, heads, width);
  if (count == 0) return;
  const Tokens all{bytes_of(pages), bytes_of(tokens), table, first, count, heads, width};
  pages.itemsize() == 4 ? put<uint32_t>(all) : put<uint16_t>(all);
}

mx::array take_tokens(const mx::array &pages, const std::vector<int32_t> &table, int64_t first, int64_t count, int64_t kv_heads,
                      int64_t head_dim) {
  check(pages, table, first, count, kv_heads, head_dim);
  const mx::Shape shape{static_cast<int>(count), 2, static_cast<int>(kv_heads), static_cast<int>(head_dim)};
  mx::array out(mx::allocator::malloc(count * 2 * kv_heads * head_dim * pages.itemsize()), shape, pages.dtype());
  const Tokens all{bytes_of(pages), const_cast<char *>(out.data<char>()), table, first, count, kv_heads, head_dim};
  pages.itemsize() == 4 ? take<uint32_t>(all) : take<uint16_t>(all);
  return out;
}

}  // namespace puna
