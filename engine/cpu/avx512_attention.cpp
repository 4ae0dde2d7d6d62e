// Paged attention in AVX-512: 32 tokens of a page are two vectors; up to four query heads share each load.
#include <limits>

#include "attention.h"
#include "avx512_lanes.h"
#include "halves.h"

namespace puna {
namespace {

using namespace avx512;

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

// Scores of one page, for G query heads: each score is one chain over Dh.
template <KV F, int G>
void page_scores(const float *queries, int64_t head_dim, const void *keys, float (*scores)[PARTITION]) {
  __m512 low[G], high[G];
  for (int g = 0; g < G; ++g) low[g] = high[g] = _mm512_setzero_ps();
  for (int64_t d = 0; d < head_dim; ++d) {
    const __m512 a = load<F>(keys, d * PAGE), b = load<F>(keys, d * PAGE + 16);
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const __m512 q = _mm512_set1_ps(queries[g * head_dim + d]);
      low[g] = _mm512_fmadd_ps(q, a, low[g]);
      high[g] = _mm512_fmadd_ps(q, b, high[g]);
    }
  }
  for (int g = 0; g < G; ++g) {
    _mm512_store_ps(scores[g], low[g]);
    _mm512_store_ps(scores[g] + 16, high[g]);
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

// Four vectors of the head's width for G heads: 4 G accumulators, one chain over tokens each.
template <KV F, int G>
void weigh_values(const float (*p)[PARTITION], int64_t head_dim, int64_t column, const void *const *value_pages, int64_t first,
                  int64_t last, float *out) {
  __mmask16 m[4];
  for (int v = 0; v < 4; ++v) m[v] = column + 16 * v < head_dim ? first_lanes(head_dim - column - 16 * v) : 0;
  __m512 acc[G][4];
  for (int g = 0; g < G; ++g) {
    for (int v = 0; v < 4; ++v) acc[g][v] = _mm512_setzero_ps();
  }
  for (int64_t t = first; t < last; ++t) {
    const int64_t row = t % PAGE * head_dim + column;
    __m512 values[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) values[v] = load<F>(value_pages[t / PAGE], row + 16 * v, m[v]);
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const __m512 weight = _mm512_set1_ps(p[g][t]);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) acc[g][v] = _mm512_fmadd_ps(weight, values[v], acc[g][v]);
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int v = 0; v < 4; ++v) _mm512_mask_storeu_ps(out + g * head_dim + column + 16 * v, m[v], acc[g][v]);
  }
}

template <KV F, int G>
void heads(const float *queries, int64_t head_dim, const void *const *key_pages, const void *const *value_pages, int64_t first,
           int64_t last, float *maxima, float *sums, float *out) {
  alignas(64) float p[G][PARTITION];
  for (int64_t page = first / PAGE; page * PAGE < last; ++page) {
    page_scores<F, G>(queries, head_dim, key_pages[page], reinterpret_cast<float(*)[PARTITION]>(&p[0][page * PAGE]));
  }
  for (int g = 0; g < G; ++g) exponentials(p[g], first, last, maxima + g, sums + g);
  for (int64_t column = 0; column < head_dim; column += 64) {
    weigh_values<F, G>(p, head_dim, column, value_pages, first, last, out);
  }
}

template <KV F>
void partition_as(const float *queries, int64_t group, int64_t head_dim, const void *const *key_pages,
                  const void *const *value_pages, int64_t first, int64_t last, float *maxima, float *sums, float *out) {
  using Heads = decltype(&heads<F, 1>);
  constexpr Heads by_count[] = {heads<F, 1>, heads<F, 2>, heads<F, 3>, heads<F, 4>};
  for (int64_t g = 0; g < group; g += 4) {
    const int64_t n = group - g < 4 ? group - g : 4;
    by_count[n - 1](queries + g * head_dim, head_dim, key_pages, value_pages, first, last, maxima + g, sums + g,
                    out + g * head_dim);
  }
}

void write(const float *keys, const float *values, int64_t stride, int64_t tokens, int64_t head_dim, int64_t slot, KV format,
           void *key_page, void *value_page) {
  switch (format) {
    case KV::f32: return write_as<KV::f32>(keys, values, stride, tokens, head_dim, slot, key_page, value_page);
    case KV::f16: return write_as<KV::f16>(keys, values, stride, tokens, head_dim, slot, key_page, value_page);
    case KV::bf16: return write_as<KV::bf16>(keys, values, stride, tokens, head_dim, slot, key_page, value_page);
  }
}

void partition(const AttentionTile &t, const Partial &out) {
  const auto as = t.format == KV::f32 ? partition_as<KV::f32> : t.format == KV::f16 ? partition_as<KV::f16> : partition_as<KV::bf16>;
  for (int64_t row = 0; row < t.rows; ++row) {
    const int64_t q = row * t.group;
    as(t.queries + q * t.head_dim, t.group, t.head_dim, t.keys, t.values, t.first[row], t.last[row], out.maxima + q, out.sums + q,
       out.out + q * t.head_dim);
  }
}

}  // namespace

const AttentionKernels avx512_attention{write, partition, portable_attention.merge};

}  // namespace puna
