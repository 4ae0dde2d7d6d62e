// Paged attention in AVX-512: 32 tokens of a page are two vectors; up to eight queries share each load of keys, up to six
// each load of values. Multiplications bound it: conversions, loads and comparisons run beside them at no cost.
#include <algorithm>
#include <array>
#include <limits>

#include "attention.h"
#include "avx512_codes.h"
#include "avx512_lanes.h"
#include "halves.h"

namespace puna {
namespace {

using namespace avx512;

constexpr int64_t SCORED = 8, SCORED_TWICE = 6, WEIGHED = 6;  // queries that share a load of keys of one page, of two, of values

// Bytes of `count` numbers.
template <KV F>
constexpr int64_t bytes(int64_t count) {
  return F == KV::q4 ? count / 2 : F == KV::q8 ? count : F == KV::f32 ? 4 * count : 2 * count;
}

template <KV F>
__m512 load(const void *data, int64_t i, __mmask16 m = 0xffff) {
  if constexpr (quantised(F)) return load_codes<F>(data, i);
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

// Asks for the cache lines of a page to come that lie where `count` elements from `i` lie in this one. While a page of keys is
// read these are of its values, and then of the keys of a partition later: what is nearer would not arrive in time.
template <KV F>
void prefetch(const char *ahead, int64_t i, int64_t count) {
  for (int64_t byte = 0; byte < bytes<F>(count); byte += 64) _mm_prefetch(ahead + bytes<F>(i) + byte, _MM_HINT_T1);
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
  int64_t stride;           // elements from a token to the next
  const void *const *next;  // to prefetch meanwhile, page by page; may be null
};

// V vectors of the sums of Q queries go on over the tokens [first, last): Q * V chains. Of quantised values two vectors are a
// group, whose weights lie `apart` from those of the group before.
template <KV F, int Q, int V>
void weigh(const float *p, int64_t apart, int64_t first, int64_t last, const Values &values, int64_t column, __mmask16 m, float *out,
           int64_t head_dim) {
  __m512 sums[Q][V];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[q][v] = _mm512_maskz_loadu_ps(m, out + q * head_dim + column + 16 * v);
  }
  for (int64_t page = first / PAGE; page * PAGE < last; ++page) {
    const int64_t begin = page * PAGE, from = std::max(first, begin), to = std::min(last, begin + PAGE);
    const char *ahead = values.next ? static_cast<const char *>(values.next[page]) : nullptr;
    for (int64_t t = from; t < to; ++t) {
      const int64_t at = (t - begin) * values.stride + column;
      __m512 row[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) row[v] = load<F>(values.pages[page], at + 16 * v, m);
      if (ahead) prefetch<F>(ahead, at, 16 * V);
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) {
        const float *const weight = p + q * PARTITION + t;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          sums[q][v] = _mm512_fmadd_ps(_mm512_set1_ps(weight[quantised(F) ? v / 2 * apart : 0]), row[v], sums[q][v]);
        }
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
  for (; column + 64 <= head_dim; column += 64) weigh<F, Q, 4>(p, 0, first, last, values, column, 0xffff, out, head_dim);
  for (; column < head_dim; column += 16) {
    weigh<F, Q, 1>(p, 0, first, last, values, column, first_lanes(head_dim - column), out, head_dim);
  }
}

// The same over one or two groups of quantised columns from `column` on, by weights that are multiplied by their scales.
template <KV F, int Q>
void weigh_groups(const float *weights, int64_t apart, int64_t first, int64_t last, const Values &values, int64_t column, float *out,
                  int64_t head_dim) {
  const int64_t end = std::min(column + 2 * KV_GROUP, head_dim);
  if (column + 64 <= end) return weigh<F, Q, 4>(weights, apart, first, last, values, column, 0xffff, out, head_dim);
  for (int64_t c = column; c < end; c += 16) {
    const float *const group = weights + (c - column) / KV_GROUP * apart;
    weigh<F, Q, 1>(group, 0, first, last, values, c, first_lanes(head_dim - c), out, head_dim);
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
constexpr decltype(&score_codes<F, 1>) SCORE_CODES[] = {score_codes<F, 1>, score_codes<F, 2>, score_codes<F, 3>,
                                                        score_codes<F, 4>, score_codes<F, 5>, score_codes<F, 6>};
template <KV F>
constexpr decltype(&weigh_groups<F, 1>) WEIGH_GROUPS[] = {weigh_groups<F, 1>, weigh_groups<F, 2>, weigh_groups<F, 3>,
                                                          weigh_groups<F, 4>, weigh_groups<F, 5>, weigh_groups<F, 6>};
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

  template <KV F>
  void score_coded(int64_t page, const void *ahead) const {
    const int64_t begin = page * PAGE, end = begin + PAGE;
    shared(queries(), CODED, [&](int64_t q, int64_t n) {
      if (first(q) >= end || last(q + n - 1) <= begin) return;
      SCORE_CODES<F>[n - 1](from_query(*tile.codes, q), tile.head_dim, tile.keys[page], ahead, scores + q * PARTITION + begin);
      ahead = nullptr;
    });
  }

  // Scores of `count` neighbouring pages, one or two.
  template <KV F>
  void score_pages(int64_t page, int64_t count, std::array<const void *, 2> ahead) const {
    const int64_t begin = page * PAGE, end = begin + count * PAGE;
    const bool all = first(queries() - 1) < end && last(0) > begin;
    shared(queries(), count == 1 ? SCORED : SCORED_TWICE, [&](int64_t q, int64_t n) {
      if (!all && (first(q) >= end || last(q + n - 1) <= begin)) return;
      SCORE<F>[count - 1][n - 1](tile.queries + q * tile.head_dim, tile.head_dim, tile.keys + page, ahead.data(),
                                 scores + q * PARTITION + begin);
      ahead = {};
    });
  }

  // Scores become exponentials, and the sums of values zero.
  void make_weights() const {
    for (int64_t q = 0; q < queries(); ++q) {
      exponentials(scores + q * PARTITION, first(q), last(q), out.maxima + q, out.sums + q);
    }
    std::fill_n(out.out, queries() * tile.head_dim, 0.0f);
  }

  // Calls go(q, count, from, to, ahead) for all that queries see. Tokens that all queries of a share see go together; what only
  // some see goes query by query, before and after. Pages to come are asked for once.
  template <class Go>
  void weigh_all(const Go &go) const {
    bool ahead = true;
    const auto some = [&](int64_t q, int64_t count, int64_t from, int64_t to) {
      if (from < to) go(q, count, from, to, ahead);
    };
    shared(queries(), WEIGHED, [&](int64_t q, int64_t count) {
      const int64_t from = first(q + count - 1), to = last(q);
      for (int64_t i = q; i < q + count; ++i) some(i, 1, first(i), std::min(from, last(i)));
      some(q, count, from, to);
      for (int64_t i = q; i < q + count; ++i) some(i, 1, std::max(from, to), last(i));
      ahead = false;
    });
  }

  template <KV F>
  void weigh_numbers(Values values) const {
    weigh_all([&](int64_t q, int64_t count, int64_t from, int64_t to, bool ahead) {
      if (!ahead) values.next = nullptr;
      WEIGH<F>[count - 1](scores + q * PARTITION, from, to, values, out.out + q * tile.head_dim, tile.head_dim);
    });
  }

  // Exponentials times the scales of a group, in whole vectors. The scales of keys to come are asked for.
  template <KV F>
  void scale_weights(int64_t group, float *to) const {
    for (int64_t page = 0; tile.next && page < PARTITION / PAGE; ++page) {
      if (tile.next[page]) _mm_prefetch(bytes_of(tile.next[page], key_codes(F, tile.head_dim) + group * PAGE * 2), _MM_HINT_T1);
    }
    for (int64_t q = 0; q < queries(); ++q) {
      for (int64_t t = first(q) / 16 * 16; t < last(q); t += 16) {
        const int64_t at = value_codes(F, tile.head_dim) + (group * PAGE + t % PAGE) * 2;
        const __m512 scale = load_scales(bytes_of(tile.values[t / PAGE], at));
        _mm512_store_ps(to + q * PARTITION + t, _mm512_mul_ps(_mm512_load_ps(scores + q * PARTITION + t), scale));
      }
    }
  }

  template <KV F>
  void weigh_codes() const {
    const int64_t n = queries(), apart = n * PARTITION, groups = kv_groups(tile.head_dim);
    float *const weights = scores + n * PARTITION;
    Values values{tile.values, F == KV::q8 ? widened(tile.head_dim) : groups * KV_GROUP, nullptr};
    for (int64_t g = 0; g < groups; g += 2) {
      scale_weights<F>(g, weights);
      if (g + 1 < groups) scale_weights<F>(g + 1, weights + apart);
      weigh_all([&](int64_t q, int64_t count, int64_t from, int64_t to, bool ahead) {
        values.next = ahead ? tile.next : nullptr;
        WEIGH_GROUPS<F>[count - 1](weights + q * PARTITION, apart, from, to, values, g * KV_GROUP, out.out + q * tile.head_dim,
                                   tile.head_dim);
      });
    }
  }
};

// Numbers are widened wherever they are used: to keep them as float32 for all queries of a tile would save conversions that
// cost nothing, and let the memory wait meanwhile.
template <KV F>
void partition_as(const AttentionTile &tile, const Partial &out) {
  const Work work{tile, out, tile.scratch};
  const int64_t end = (work.last(work.queries() - 1) + PAGE - 1) / PAGE;
  for (int64_t page = work.first(0) / PAGE; page < end; page += 2) {
    const int64_t count = std::min(end - page, int64_t{2});
    work.score_pages<F>(page, count, {tile.values[page], tile.values[page + count - 1]});
  }
  work.make_weights();
  work.weigh_numbers<F>({tile.values, tile.head_dim, tile.next});
}

template <KV F>
void coded_partition_as(const AttentionTile &tile, const Partial &out) {
  const Work work{tile, out, tile.scratch};
  const int64_t end = (work.last(work.queries() - 1) + PAGE - 1) / PAGE;
  for (int64_t page = work.first(0) / PAGE; page < end; ++page) {
    work.score_coded<F>(page, tile.values[page]);
  }
  work.make_weights();
  work.weigh_codes<F>();
}

void write(const float *keys, const float *values, int64_t stride, int64_t tokens, int64_t head_dim, int64_t slot, KV format,
           void *key_page, void *value_page) {
  switch (format) {
    case KV::f32: return write_as<KV::f32>(keys, values, stride, tokens, head_dim, slot, key_page, value_page);
    case KV::f16: return write_as<KV::f16>(keys, values, stride, tokens, head_dim, slot, key_page, value_page);
    case KV::bf16: return write_as<KV::bf16>(keys, values, stride, tokens, head_dim, slot, key_page, value_page);
    case KV::q8:
    case KV::q4: return write_codes(keys, values, stride, tokens, head_dim, slot, format, key_page, value_page);
  }
}

void partition(const AttentionTile &tile, const Partial &out) {
  switch (tile.format) {
    case KV::f32: return partition_as<KV::f32>(tile, out);
    case KV::f16: return partition_as<KV::f16>(tile, out);
    case KV::bf16: return partition_as<KV::bf16>(tile, out);
    case KV::q8: return coded_partition_as<KV::q8>(tile, out);
    case KV::q4: return coded_partition_as<KV::q4>(tile, out);
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
