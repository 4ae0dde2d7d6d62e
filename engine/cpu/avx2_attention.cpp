// Paged attention in AVX2: up to four queries share each load of a page that is brought to float32 once for the tile.
#include <algorithm>
#include <cstring>
#include <limits>

#include "attention.h"
#include "avx2_codes.h"
#include "avx2_lanes.h"
#include "halves.h"

namespace puna {
namespace {

constexpr int64_t LINE = 64;  // bytes of a cache line

constexpr int64_t bytes_of(KV format) { return format == KV::f32 ? 4 : 2; }  // of a number that is no code

template <KV F>
__m256 eight(const void *data, int64_t i) {
  if constexpr (F == KV::f32) return _mm256_loadu_ps(static_cast<const float *>(data) + i);
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i *>(static_cast<const uint16_t *>(data) + i));
  if constexpr (F == KV::f16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// Rows of `width` numbers as float32, padded with zeros to whole vectors.
template <KV F>
void widen(const void *data, int64_t rows, int64_t width, float *out) {
  const int64_t padded = widened(width), size = bytes_of(F);
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t *row = static_cast<const uint8_t *>(data) + r * width * size;
    for (int64_t i = 0; i < padded; i += 8) {
      if (i + 8 <= width) {
        _mm256_store_ps(out + r * padded + i, eight<F>(row, i));
      } else {
        uint8_t last[8 * sizeof(float)] = {};
        if (i < width) std::memcpy(last, row + i * size, (width - i) * size);
        _mm256_store_ps(out + r * padded + i, eight<F>(last, 0));
      }
    }
  }
}

void widen(const void *data, int64_t rows, int64_t width, KV format, float *out) {
  switch (format) {
    case KV::f32: return widen<KV::f32>(data, rows, width, out);
    case KV::f16: return widen<KV::f16>(data, rows, width, out);
    case KV::bf16: return widen<KV::bf16>(data, rows, width, out);
    default: return;
  }
}

void read_ahead(const void *data, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += LINE) _mm_prefetch(static_cast<const char *>(data) + i, _MM_HINT_T0);
}

// Scores of 8 V tokens for Q queries: each is one chain over Dh.
template <int Q, int V>
void score(const float *queries, int64_t head_dim, const float *keys, float *scores) {
  __m256 acc[Q][V];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[q][v] = _mm256_setzero_ps();
  for (int64_t d = 0; d < head_dim; ++d) {
    __m256 key[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) key[v] = _mm256_loadu_ps(keys + d * PAGE + 8 * v);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const __m256 x = _mm256_set1_ps(queries[q * head_dim + d]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[q][v] = _mm256_fmadd_ps(x, key[v], acc[q][v]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) _mm256_storeu_ps(scores + q * PARTITION + 8 * v, acc[q][v]);
}

void page_scores(const float *queries, int64_t count, int64_t head_dim, const float *keys, float *scores) {
  int64_t q = 0;
  for (; q + 4 <= count; q += 4)
    for (int64_t t = 0; t < PAGE; t += 16) score<4, 2>(queries + q * head_dim, head_dim, keys + t, scores + q * PARTITION + t);
  for (; q + 2 <= count; q += 2) score<2, 4>(queries + q * head_dim, head_dim, keys, scores + q * PARTITION);
  if (q < count) score<1, 4>(queries + q * head_dim, head_dim, keys, scores + q * PARTITION);
}

// Scores become exponentials, zero where they share 16 lanes with seen tokens and are not seen.
void exponentials(float *p, int64_t first, int64_t last, float *maximum, float *sum) {
  const __m256 nothing = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  const int64_t begin = first / LANES * LANES, end = (last + LANES - 1) / LANES * LANES;
  const auto seen = [&](int64_t t) {
    return _mm256_castsi256_ps(_mm256_andnot_si256(first_lanes(first - t), first_lanes(last - t)));
  };
  __m256 highest = nothing;
  for (int64_t t = begin; t < end; t += 8) {
    // A score that is a NaN is passed over, as the order of these operands has it.
    highest = _mm256_max_ps(_mm256_blendv_ps(nothing, _mm256_load_ps(p + t), seen(t)), highest);
  }
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(highest), _mm256_extractf128_ps(highest, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  *maximum = _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  const __m256 top = _mm256_set1_ps(*maximum);
  __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t t = begin; t < end; t += LANES) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      float *eight = p + t + 8 * half;
      const __m256 e = _mm256_and_ps(seen(t + 8 * half), exp_lanes(_mm256_sub_ps(_mm256_load_ps(eight), top)));
      _mm256_store_ps(eight, e);
      sums[half] = _mm256_add_ps(sums[half], e);
    }
  }
  *sum = fold_lanes(sums[0], sums[1]);
}

// Adds tokens [first, last) of a page to Q queries' sums of values: 8 V columns, one chain over tokens each.
template <int Q, int V>
void weigh_columns(const float *p, int64_t head_dim, int64_t column, const float *values, int64_t stride, int64_t first, int64_t last,
                   float *out) {
  __m256i mask[V];
  __m256 acc[Q][V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) mask[v] = first_lanes(head_dim - column - 8 * v);
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[q][v] = _mm256_maskload_ps(out + q * head_dim + column + 8 * v, mask[v]);
  for (int64_t t = first; t < last; ++t) {
    const float *row = values + t * stride + column;
    __m256 value[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) value[v] = _mm256_load_ps(row + 8 * v);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const __m256 weight = _mm256_set1_ps(p[q * PARTITION + t]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[q][v] = _mm256_fmadd_ps(weight, value[v], acc[q][v]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) _mm256_maskstore_ps(out + q * head_dim + column + 8 * v, mask[v], acc[q][v]);
}

// Columns [column, end) of the values of a page.
struct Columns {
  const float *values;
  int64_t stride, column, end;
};

// All columns of Q queries; V vectors at a time, the last ones two at a time.
template <int Q, int V>
void weigh(const float *p, int64_t head_dim, const Columns &c, int64_t first, int64_t last, float *out) {
  if (first >= last) return;
  int64_t column = c.column;
  for (; column + 8 * V <= widened(c.end); column += 8 * V)
    weigh_columns<Q, V>(p, head_dim, column, c.values, c.stride, first, last, out);
  for (; column < c.end; column += 16) weigh_columns<Q, 2>(p, head_dim, column, c.values, c.stride, first, last, out);
}

// One tile, with its scratch: scores (queries, PARTITION), the same times a group's scales, a page of keys (Dh, PAGE) and one
// of values (PAGE, widened Dh).
struct Work {
  const AttentionTile &tile;
  const Partial &out;
  float *scores, *weights, *keys, *values;

  // Tokens of `page` that query q sees.
  int64_t first(int64_t q, int64_t page) const { return std::max<int64_t>(tile.first[q / tile.group] - page * PAGE, 0); }
  int64_t last(int64_t q, int64_t page) const { return std::min<int64_t>(tile.last[q / tile.group] - page * PAGE, PAGE); }
  bool sees(int64_t q, int64_t page) const { return first(q, page) < last(q, page); }

  void add_scores(int64_t page, int64_t q, int64_t count) const {
    const float *source = static_cast<const float *>(tile.keys[page]);
    if (tile.format != KV::f32) widen(tile.keys[page], tile.head_dim, PAGE, tile.format, keys), source = keys;
    page_scores(tile.queries + q * tile.head_dim, count, tile.head_dim, source, scores + q * PARTITION + page * PAGE);
  }

  void add_coded_scores(int64_t page, int64_t q, int64_t count) const {
    auto *const codes = reinterpret_cast<int16_t *>(keys);
    avx2_codes::widen_keys(tile.keys[page], tile.format, tile.head_dim, codes);
    const auto score = [&](auto function, int64_t i) {
      for (int64_t t = 0; t < PAGE; t += 16) {
        function(from_query(*tile.codes, i), tile.head_dim, codes, tile.keys[page], tile.format, t,
                 scores + i * PARTITION + page * PAGE + t);
      }
    };
    const int64_t end = q + count;
    for (; q + 2 <= end; q += 2) score(avx2_codes::score_codes<2>, q);
    if (q < end) score(avx2_codes::score_codes<1>, q);
  }

  template <int Q, int V>
  void weigh_between(int64_t page, const float *p, const Columns &columns, int64_t q, int64_t from, int64_t to) const {
    weigh<Q, V>(p + q * PARTITION + page * PAGE, tile.head_dim, columns, from, to, out.out + q * tile.head_dim);
  }

  // Tokens that all four see are weighed together; what only some see comes before or after, in the order of tokens.
  void weigh_four(int64_t page, const float *p, const Columns &columns, int64_t q) const {
    int64_t from = 0, to = PAGE;
    for (int64_t i = q; i < q + 4; ++i) from = std::max(from, first(i, page)), to = std::min(to, last(i, page));
    to = std::max(from, to);
    for (int64_t i = q; i < q + 4; ++i) weigh_between<1, 8>(page, p, columns, i, first(i, page), std::min(from, last(i, page)));
    weigh_between<4, 2>(page, p, columns, q, from, to);
    for (int64_t i = q; i < q + 4; ++i) weigh_between<1, 8>(page, p, columns, i, std::max(to, first(i, page)), last(i, page));
  }

  void weigh_columns_of(int64_t page, const float *p, const Columns &columns, int64_t q, int64_t count) const {
    const int64_t end = q + count;
    for (; q + 4 <= end; q += 4) weigh_four(page, p, columns, q);
    for (; q < end; ++q) weigh_between<1, 8>(page, p, columns, q, first(q, page), last(q, page));
  }

  void add_values(int64_t page, int64_t q, int64_t count) const {
    widen(tile.values[page], PAGE, tile.head_dim, tile.format, values);
    weigh_columns_of(page, scores, {values, widened(tile.head_dim), 0, tile.head_dim}, q, count);
  }

  // Group by group, with the exponentials times the group's scales: in whole vectors, of which only seen tokens count.
  void add_coded_values(int64_t page, int64_t q, int64_t count) const {
    const int64_t groups = kv_groups(tile.head_dim), stride = tile.format == KV::q8 ? widened(tile.head_dim) : groups * KV_GROUP;
    avx2_codes::widen_values(tile.values[page], tile.format, tile.head_dim, values);
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t t = 0; t < PAGE; t += 8) {
        const __m256 scale = avx2_codes::load_scales(tile.values[page], value_codes(tile.format, tile.head_dim), g, t);
        for (int64_t i = q; i < q + count; ++i) {
          const int64_t at = i * PARTITION + page * PAGE + t;
          _mm256_store_ps(weights + at, _mm256_mul_ps(_mm256_load_ps(scores + at), scale));
        }
      }
      weigh_columns_of(page, weights, {values, stride, g * KV_GROUP, std::min((g + 1) * KV_GROUP, tile.head_dim)}, q, count);
    }
  }
};

void partition(const AttentionTile &tile, const Partial &out) {
  const int64_t queries = tile.rows * tile.group, width = widened(tile.head_dim);
  const int64_t bytes = key_bytes(tile.format, tile.head_dim);
  const bool coded = quantised(tile.format);
  float *const weights = tile.scratch + queries * PARTITION, *const keys = weights + queries * PARTITION;
  const Work work{tile, out, tile.scratch, weights, keys, keys + PAGE * width};
  const int64_t begin = tile.first[0] / PAGE, end = (tile.last[tile.rows - 1] + PAGE - 1) / PAGE;
  // The queries that see a page are neighbours, since first and last ascend.
  const auto of_each_page = [&](const void *const *pages, const void *after, const auto &add) {
    int64_t q = 0, past = 0;
    for (int64_t page = begin; page < end; ++page) {
      if (const void *next = page + 1 < end ? pages[page + 1] : after) read_ahead(next, bytes);
      while (q < queries && tile.last[q / tile.group] <= page * PAGE) ++q;
      past = std::max(past, q);
      while (past < queries && work.sees(past, page)) ++past;
      if (q < past) add(page, q, past - q);
    }
  };
  of_each_page(tile.keys, tile.values[begin], [&](int64_t page, int64_t q, int64_t n) {
    coded ? work.add_coded_scores(page, q, n) : work.add_scores(page, q, n);
  });
  for (int64_t q = 0; q < queries; ++q) {
    exponentials(work.scores + q * PARTITION, tile.first[q / tile.group], tile.last[q / tile.group], out.maxima + q, out.sums + q);
  }
  std::fill_n(out.out, queries * tile.head_dim, 0.0f);
  of_each_page(tile.values, tile.next ? tile.next[0] : nullptr, [&](int64_t page, int64_t q, int64_t n) {
    coded ? work.add_coded_values(page, q, n) : work.add_values(page, q, n);
  });
}

template <KV F>
uint16_t half_of(float value) {
  if constexpr (F == KV::f16) return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
  else return to_bf16(value);
}

template <KV F>
void write_as(const float *keys, const float *values, int64_t stride, int64_t tokens, int64_t head_dim, int64_t slot, void *key_page,
              void *value_page) {
  using Number = std::conditional_t<F == KV::f32, float, uint16_t>;
  const auto stored = [](float value) -> Number {
    if constexpr (F == KV::f32) return value;
    else return half_of<F>(value);
  };
  auto *const key_numbers = static_cast<Number *>(key_page), *const value_numbers = static_cast<Number *>(value_page);
  for (int64_t d = 0; d < head_dim; ++d)
    for (int64_t t = 0; t < tokens; ++t) key_numbers[d * PAGE + slot + t] = stored(keys[t * head_dim + d]);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t d = 0; d < head_dim; ++d) value_numbers[(slot + t) * head_dim + d] = stored(values[t * stride + d]);
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

void merge(int64_t queries, int64_t head_dim, const Partial &next, const Partial &total) {
  for (int64_t q = 0; q < queries; ++q) {
    const float highest = next.maxima[q] > total.maxima[q] ? next.maxima[q] : total.maxima[q];
    const __m256 old = exp_lanes(_mm256_set1_ps(total.maxima[q] - highest));
    const __m256 fresh = exp_lanes(_mm256_set1_ps(next.maxima[q] - highest));
    total.maxima[q] = highest;
    total.sums[q] = total.sums[q] * _mm256_cvtss_f32(old) + next.sums[q] * _mm256_cvtss_f32(fresh);
    const float *from = next.out + q * head_dim;
    float *to = total.out + q * head_dim;
    for (int64_t i = 0; i < head_dim; i += 8) {
      const __m256i m = first_lanes(head_dim - i);
      const __m256 kept = _mm256_mul_ps(_mm256_maskload_ps(to + i, m), old);
      _mm256_maskstore_ps(to + i, m, _mm256_add_ps(kept, _mm256_mul_ps(_mm256_maskload_ps(from + i, m), fresh)));
    }
  }
}

}  // namespace

const AttentionKernels avx2_attention{write, partition, merge};

}  // namespace puna
