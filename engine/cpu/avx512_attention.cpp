// Paged attention in AVX-512: 32 tokens of a page are two vectors; up to eight queries share each load of keys, up to six
// each load of values. Multiplications bound it: conversions, loads and comparisons run beside them at no cost.
#include <algorithm>
#include <array>
#include <limits>

#include "attention.h"
#include "avx512_lanes.h"
#include "halves.h"

namespace puna {
namespace {

using namespace avx512;

constexpr int64_t SCORED = 8, SCORED_TWICE = 6, WEIGHED = 6;  // queries that share a load of keys of one page, of two, of values
// With more queries than this it pays to widen a page once for all of them.
constexpr int64_t NARROW = 8;

template <KV F>
constexpr int64_t BYTES = F == KV::f32 ? 4 : 2;

template <KV F>
__m512 load(const void *data, int64_t i, __mmask16 m = 0xffff) {
  if constexpr (F == KV::f32) return _mm512_maskz_loadu_ps(m, static_cast<const float *>(data) + i);
  const __m256i half = _mm256_maskz_loadu_epi16(m, static_cast<const uint16_t *>(data) + i);
  if constexpr (F == KV::f16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

template <KV F>
void store(void *data, int64_t i, float value) {
  if constexpr (F == KV::f32) static_cast<float *>(data)[i] = value;
  else if constexpr (F == KV::f16) static_cast<uint16_t *>(data)[i] = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
  else static_cast<uint16_t *>(data)[i] = to_bf16(value);
}

template <KV F>
void write_as(const float *keys, const float *values, int64_t stride, int64_t tokens, int64_t head_dim, int64_t slot, void *key_page,
              void *value_page) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t d = 0; d < head_dim; ++d) {
      store<F>(key_page, d * PAGE + slot + t, keys[t * head_dim + d]);
      store<F>(value_page, (slot + t) * head_dim + d, values[t * stride + d]);
    }
  }
}

// Asks for the cache lines of the page to come that lie where `count` elements from `i` lie in this one: the hardware's own
// prefetcher stops at the end of a page.
template <KV F>
void prefetch(const char *ahead, int64_t i, int64_t count) {
  for (int64_t byte = 0; byte < count * BYTES<F>; byte += 64) _mm_prefetch(ahead + i * BYTES<F> + byte, _MM_HINT_T1);
}

// Scores of P pages for Q queries: each score is one chain over Dh, 2 P Q of them side by side.
template <KV F, int Q, int P>
void score(const float *queries, int64_t head_dim, const void *const *keys, const void *const *ahead, float *scores) {
  __m512 sums[Q][2 * P];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < 2 * P; ++v) sums[q][v] = _mm512_setzero_ps();
  }
  const char *from[P], *to_come[P];
  for (int i = 0; i < P; ++i) from[i] = static_cast<const char *>(keys[i]), to_come[i] = static_cast<const char *>(ahead[i]);
#pragma GCC unroll 2
  for (int64_t d = 0; d < head_dim; ++d) {
    __m512 k[2 * P];
#pragma GCC unroll 4
    for (int v = 0; v < 2 * P; ++v) k[v] = load<F>(from[v / 2], d * PAGE + v % 2 * 16);
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) {
      if (to_come[i]) prefetch<F>(to_come[i], d * PAGE, PAGE);
    }
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const __m512 x = _mm512_set1_ps(queries[q * head_dim + d]);
#pragma GCC unroll 4
      for (int v = 0; v < 2 * P; ++v) sums[q][v] = _mm512_fmadd_ps(x, k[v], sums[q][v]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < 2 * P; ++v) _mm512_store_ps(scores + q * PARTITION + 16 * v, sums[q][v]);
  }
}

// Rows of values of a partition, in pages.
struct Values {
  const void *const *pages;
  int64_t stride;       // elements from a token to the next
  const void *next;     // to prefetch after the last page
  bool ahead;           // whether to prefetch at all
};

// V vectors of the sums of Q queries go on over the tokens [first, last): Q * V chains.
template <KV F, int Q, int V>
void weigh(const float *p, int64_t first, int64_t last, const Values &values, int64_t column, __mmask16 m, float *out,
           int64_t head_dim) {
  __m512 sums[Q][V];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[q][v] = _mm512_maskz_loadu_ps(m, out + q * head_dim + column + 16 * v);
  }
  for (int64_t page = first / PAGE; page * PAGE < last; ++page) {
    const int64_t begin = page * PAGE, from = std::max(first, begin), to = std::min(last, begin + PAGE);
    const char *ahead = nullptr;
    if (values.ahead) ahead = static_cast<const char *>(begin + PAGE < last ? values.pages[page + 1] : values.next);
    for (int64_t t = from; t < to; ++t) {
      const int64_t at = (t - begin) * values.stride + column;
      __m512 row[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) row[v] = load<F>(values.pages[page], at + 16 * v, m);
      if (ahead) prefetch<F>(ahead, at, 16 * V);
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) {
        const __m512 weight = _mm512_set1_ps(p[q * PARTITION + t]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[q][v] = _mm512_fmadd_ps(weight, row[v], sums[q][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) _mm512_mask_storeu_ps(out + q * head_dim + column + 16 * v, m, sums[q][v]);
  }
}

// The same over the whole width of a head.
template <KV F, int Q>
void weigh_heads(const float *p, int64_t first, int64_t last, const Values &values, float *out, int64_t head_dim) {
  int64_t column = 0;
  for (; column + 64 <= head_dim; column += 64) weigh<F, Q, 4>(p, first, last, values, column, 0xffff, out, head_dim);
  for (; column < head_dim; column += 16) {
    weigh<F, Q, 1>(p, first, last, values, column, first_lanes(head_dim - column), out, head_dim);
  }
}

// Scores become exponentials, zero outside of [first, last).
void exponentials(float *p, int64_t first, int64_t last, float *maximum, float *sum) {
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const int64_t begin = first / 16 * 16;
  const auto seen = [&](int64_t t) { return static_cast<__mmask16>(first_lanes(last - t) & ~(t < first ? first_lanes(first - t) : 0)); };
  __m512 highest = nothing;
  for (int64_t t = begin; t < last; t += 16) {
    highest = _mm512_max_ps(_mm512_mask_blend_ps(seen(t), nothing, _mm512_load_ps(p + t)), highest);
  }
  *maximum = _mm512_reduce_max_ps(highest);
  const __m512 top = _mm512_set1_ps(*maximum);
  __m512 total = _mm512_setzero_ps();
  for (int64_t t = begin; t < last; t += 16) {
    const __m512 e = _mm512_maskz_mov_ps(seen(t), exp_lanes(_mm512_sub_ps(_mm512_load_ps(p + t), top)));
    _mm512_store_ps(p + t, e);
    total = _mm512_add_ps(total, e);
  }
  *sum = fold_lanes(total);
}

template <KV F>
using Score = decltype(&score<F, 1, 1>);
template <KV F>
constexpr Score<F> SCORE[2][SCORED] = {{score<F, 1, 1>, score<F, 2, 1>, score<F, 3, 1>, score<F, 4, 1>, score<F, 5, 1>,
                                        score<F, 6, 1>, score<F, 7, 1>, score<F, 8, 1>},
                                       {score<F, 1, 2>, score<F, 2, 2>, score<F, 3, 2>, score<F, 4, 2>, score<F, 5, 2>,
                                        score<F, 6, 2>}};
template <KV F>
using Weigh = decltype(&weigh_heads<F, 1>);
template <KV F>
constexpr Weigh<F> WEIGH[] = {weigh_heads<F, 1>, weigh_heads<F, 2>, weigh_heads<F, 3>,
                              weigh_heads<F, 4>, weigh_heads<F, 5>, weigh_heads<F, 6>};

// Calls f(begin, count) for n queries in shares of at most `most`, as even as can be.
template <class Function>
void shared(int64_t n, int64_t most, const Function &f) {
  int64_t shares = (n + most - 1) / most;
  for (int64_t begin = 0; begin < n; --shares) {
    const int64_t count = (n - begin + shares - 1) / shares;
    f(begin, count);
    begin += count;
  }
}

// One partition for a tile.
struct Work {
  const AttentionTile &tile;
  const Partial &out;
  float *scores;  // (n, PARTITION)

  int64_t queries() const { return tile.rows * tile.group; }
  int64_t first(int64_t q) const { return tile.first[q / tile.group]; }
  int64_t last(int64_t q) const { return tile.last[q / tile.group]; }

  // Scores of `count` neighbouring pages, one or two.
  template <KV F>
  void score_pages(int64_t page, int64_t count, const void *const *keys, std::array<const void *, 2> ahead) const {
    const int64_t begin = page * PAGE, end = begin + count * PAGE;
    const bool all = first(queries() - 1) < end && last(0) > begin;
    shared(queries(), count == 1 ? SCORED : SCORED_TWICE, [&](int64_t q, int64_t n) {
      if (!all && (first(q) >= end || last(q + n - 1) <= begin)) return;
      SCORE<F>[count - 1][n - 1](tile.queries + q * tile.head_dim, tile.head_dim, keys, ahead.data(), scores + q * PARTITION + begin);
      ahead = {};
    });
  }

  // Tokens that all queries of a share see go together; what only some see goes query by query, before and after.
  template <KV F>
  void weigh_all(Values values) const {
    const auto go = [&](int64_t q, int64_t count, int64_t from, int64_t to) {
      if (from >= to) return;
      WEIGH<F>[count - 1](scores + q * PARTITION, from, to, values, out.out + q * tile.head_dim, tile.head_dim);
    };
    shared(queries(), WEIGHED, [&](int64_t q, int64_t count) {
      const int64_t from = first(q + count - 1), to = last(q);
      for (int64_t i = q; i < q + count; ++i) go(i, 1, first(i), std::min(from, last(i)));
      go(q, count, from, to);
      for (int64_t i = q; i < q + count; ++i) go(i, 1, std::max(from, to), last(i));
      values.ahead = false;
    });
  }
};

// A page's rows in float32, each filled up with zeros to whole vectors.
template <KV F>
void widen(const void *page, int64_t rows, int64_t width, const char *ahead, float *to) {
  for (int64_t byte = 0; ahead && byte < rows * width * BYTES<F>; byte += 64) _mm_prefetch(ahead + byte, _MM_HINT_T1);
  if (width % 16 == 0) {
    for (int64_t i = 0; i < rows * width; i += 16) _mm512_store_ps(to + i, load<F>(page, i));
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < width; i += 16, to += 16) _mm512_store_ps(to, load<F>(page, r * width + i, first_lanes(width - i)));
  }
}

template <KV F>
void partition_as(const AttentionTile &tile, const Partial &out) {
  const Work work{tile, out, tile.scratch};
  const int64_t n = work.queries(), width = tile.head_dim, floats = PAGE * widened(width);
  const bool wide = F != KV::f32 && n > NARROW;
  float *const pages = tile.scratch + n * PARTITION;
  const int64_t begin = work.first(0) / PAGE, end = (work.last(n - 1) + PAGE - 1) / PAGE;
  // What is read after the keys of page i are the keys, then the values.
  const auto after = [&](int64_t i) { return i < end ? tile.keys[i] : i - end + begin < end ? tile.values[i - end + begin] : nullptr; };
  for (int64_t page = begin; page < end;) {
    const int64_t count = wide || page + 1 == end ? 1 : 2;
    if (wide) {
      widen<F>(tile.keys[page], width, PAGE, static_cast<const char *>(after(page + 1)), pages);
      const void *const keys[] = {pages};
      work.score_pages<KV::f32>(page, 1, keys, {});
    } else {
      work.score_pages<F>(page, count, tile.keys + page, {after(page + count), after(page + count + 1)});
    }
    page += count;
  }
  for (int64_t q = 0; q < n; ++q) {
    exponentials(work.scores + q * PARTITION, work.first(q), work.last(q), out.maxima + q, out.sums + q);
  }
  std::fill_n(out.out, n * width, 0.0f);
  if (!wide) return work.weigh_all<F>({tile.values, width, tile.next, true});
  const void *rows[PARTITION / PAGE];
  for (int64_t page = begin; page < end; ++page) {
    const char *ahead = static_cast<const char *>(page + 1 < end ? tile.values[page + 1] : tile.next);
    widen<F>(tile.values[page], PAGE, width, ahead, pages + page * floats);
    rows[page] = pages + page * floats;
  }
  work.weigh_all<KV::f32>({rows, widened(width), nullptr, false});
}

void write(const float *keys, const float *values, int64_t stride, int64_t tokens, int64_t head_dim, int64_t slot, KV format,
           void *key_page, void *value_page) {
  switch (format) {
    case KV::f32: return write_as<KV::f32>(keys, values, stride, tokens, head_dim, slot, key_page, value_page);
    case KV::f16: return write_as<KV::f16>(keys, values, stride, tokens, head_dim, slot, key_page, value_page);
    case KV::bf16: return write_as<KV::bf16>(keys, values, stride, tokens, head_dim, slot, key_page, value_page);
  }
}

void partition(const AttentionTile &tile, const Partial &out) {
  switch (tile.format) {
    case KV::f32: return partition_as<KV::f32>(tile, out);
    case KV::f16: return partition_as<KV::f16>(tile, out);
    case KV::bf16: return partition_as<KV::bf16>(tile, out);
  }
}

void merge(int64_t queries, int64_t head_dim, const Partial &next, const Partial &total) {
  alignas(64) float olds[16], freshes[16];
  for (int64_t begin = 0; begin < queries; begin += 16) {
    const __mmask16 m = first_lanes(queries - begin);
    const __m512 was = _mm512_maskz_loadu_ps(m, total.maxima + begin), comes = _mm512_maskz_loadu_ps(m, next.maxima + begin);
    const __m512 highest = _mm512_max_ps(comes, was);
    const __m512 old = exp_lanes(_mm512_sub_ps(was, highest)), fresh = exp_lanes(_mm512_sub_ps(comes, highest));
    const __m512 kept = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, total.sums + begin), old);
    const __m512 sums = _mm512_add_ps(kept, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, next.sums + begin), fresh));
    _mm512_mask_storeu_ps(total.maxima + begin, m, highest);
    _mm512_mask_storeu_ps(total.sums + begin, m, sums);
    _mm512_store_ps(olds, old);
    _mm512_store_ps(freshes, fresh);
    for (int64_t q = begin; q < std::min(queries, begin + 16); ++q) {
      const __m512 o = _mm512_set1_ps(olds[q - begin]), f = _mm512_set1_ps(freshes[q - begin]);
      float *to = total.out + q * head_dim;
      const float *from = next.out + q * head_dim;
      const auto add = [&](int64_t d, __mmask16 here) {
        const __m512 sum = _mm512_mul_ps(_mm512_maskz_loadu_ps(here, to + d), o);
        _mm512_mask_storeu_ps(to + d, here, _mm512_add_ps(sum, _mm512_mul_ps(_mm512_maskz_loadu_ps(here, from + d), f)));
      };
      int64_t d = 0;
      for (; d + 16 <= head_dim; d += 16) add(d, 0xffff);
      if (d < head_dim) add(d, first_lanes(head_dim - d));
    }
  }
}

}  // namespace

const AttentionKernels avx512_attention{write, partition, merge};

}  // namespace puna
