// Paged attention in NEON: up to four queries share each load of keys or values, 16 chains in flight.
#include "attention.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "halves.h"
#include "neon_codes.h"
#include "neon_lanes.h"

namespace puna {
namespace {

using namespace neon;

constexpr int64_t SHARED = 4;  // queries that share a load; with more of them it pays to widen a page once for all

template <KV F>
using Stored = std::conditional_t<F == KV::f32, float, uint16_t>;

template <KV F>
float32x4_t load(const Stored<F> *p) {
  if constexpr (F == KV::f32) return vld1q_f32(p);
  else if constexpr (F == KV::f16) return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
  else return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}

template <KV F>
float load_one(const Stored<F> *p) {
  if constexpr (F == KV::f32) return *p;
  else return F == KV::f16 ? from_f16(*p) : from_bf16(*p);
}

template <KV F>
Stored<F> stored(float x) {
  if constexpr (F == KV::f32) return x;
  else return F == KV::f16 ? vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0) : to_bf16(x);
}

template <KV F>
void write_as(const float *keys, const float *values, int64_t stride, int64_t tokens, int64_t head_dim, int64_t slot,
              Stored<F> *key_page, Stored<F> *value_page) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t d = 0; d < head_dim; ++d) {
      key_page[d * PAGE + slot + t] = stored<F>(keys[t * head_dim + d]);
      value_page[(slot + t) * head_dim + d] = stored<F>(values[t * stride + d]);
    }
  }
}

// Scores of 4 V tokens for Q queries: each score is one chain over Dh.
template <KV F, int Q, int V>
void score(const float *queries, int64_t head_dim, const Stored<F> *keys, float *scores) {
  float32x4_t sums[Q][V];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[q][v] = vdupq_n_f32(0);
  for (int64_t d = 0; d < head_dim; ++d) {
    float32x4_t k[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) k[v] = load<F>(keys + d * PAGE + 4 * v);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[q][v] = vfmaq_n_f32(sums[q][v], k[v], queries[q * head_dim + d]);
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) vst1q_f32(scores + q * PARTITION + 4 * v, sums[q][v]);
}

// A page of scores for Q queries.
template <KV F, int Q>
void score_page(const float *queries, int64_t head_dim, const Stored<F> *keys, float *scores) {
  constexpr int V = Q > 2 ? 4 : 8;
  for (int64_t t = 0; t < PAGE; t += 4 * V) score<F, Q, V>(queries, head_dim, keys + t, scores + t);
}

// V vectors of the sums of Q queries go on over `tokens` rows of values: Q V chains.
template <KV F, int Q, int V>
void weigh(const float *p, int64_t tokens, const Stored<F> *values, int64_t stride, float *out, int64_t head_dim) {
  float32x4_t sums[Q][V];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[q][v] = vld1q_f32(out + q * head_dim + 4 * v);
  for (int64_t t = 0; t < tokens; ++t) {
    float32x4_t row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load<F>(values + t * stride + 4 * v);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[q][v] = vfmaq_n_f32(sums[q][v], row[v], p[q * PARTITION + t]);
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) vst1q_f32(out + q * head_dim + 4 * v, sums[q][v]);
}

// The same over `columns`.
template <KV F, int Q>
void weigh_columns(const float *p, int64_t tokens, const Stored<F> *values, int64_t stride, int64_t columns, float *out,
                   int64_t head_dim) {
  int64_t column = 0;
  for (; column + 16 <= columns; column += 16) weigh<F, Q, 4>(p, tokens, values + column, stride, out + column, head_dim);
  for (; column + 4 <= columns; column += 4) weigh<F, Q, 1>(p, tokens, values + column, stride, out + column, head_dim);
  for (; column < columns; ++column) {
    for (int q = 0; q < Q; ++q) {
      float &sum = out[q * head_dim + column];
      for (int64_t t = 0; t < tokens; ++t) {
        sum = std::fma(p[q * PARTITION + t], load_one<F>(values + t * stride + column), sum);
      }
    }
  }
}

// Which of 16 tokens from t on are in [first, last).
struct Seen {
  uint32x4_t v[VECTORS];

  Seen(int64_t t, int64_t first, int64_t last) {
    constexpr int32_t COUNTING[4] = {0, 1, 2, 3};
    for (int i = 0; i < VECTORS; ++i) {
      const int32x4_t token = vaddq_s32(vld1q_s32(COUNTING), vdupq_n_s32(static_cast<int32_t>(t + 4 * i)));
      v[i] = vandq_u32(vcgeq_s32(token, vdupq_n_s32(static_cast<int32_t>(first))),
                       vcltq_s32(token, vdupq_n_s32(static_cast<int32_t>(last))));
    }
  }
};

// Scores become exponentials, zero outside of [first, last).
void exponentials(float *p, int64_t first, int64_t last, float *maximum, float *sum) {
  const int64_t begin = first / LANES * LANES;
  Sixteen highest = all(-std::numeric_limits<float>::infinity());
  for (int64_t t = begin; t < last; t += LANES) {
    const Seen seen(t, first, last);
    const Sixteen scores = load16(p + t);
    for (int i = 0; i < VECTORS; ++i) {
      // A NaN is not greater than anything, so it is passed over.
      const uint32x4_t greater = vandq_u32(seen.v[i], vcgtq_f32(scores.v[i], highest.v[i]));
      highest.v[i] = vbslq_f32(greater, scores.v[i], highest.v[i]);
    }
  }
  const float32x4_t four = vmaxq_f32(vmaxq_f32(highest.v[0], highest.v[1]), vmaxq_f32(highest.v[2], highest.v[3]));
  *maximum = vmaxvq_f32(four);
  const float32x4_t top = vdupq_n_f32(*maximum);
  Sixteen total = all(0);
  for (int64_t t = begin; t < last; t += LANES) {
    const Seen seen(t, first, last);
    Sixteen e = load16(p + t);
    for (int i = 0; i < VECTORS; ++i) {
      e.v[i] = vbslq_f32(seen.v[i], exp_lanes(vsubq_f32(e.v[i], top)), vdupq_n_f32(0));
      total.v[i] = vaddq_f32(total.v[i], e.v[i]);
    }
    store_some(p + t, e, LANES);
  }
  *sum = fold16(total);
}

// Calls f(begin, count) for n queries in shares of at most SHARED, as even as can be.
template <class Function>
void shared(int64_t n, const Function &f) {
  int64_t shares = (n + SHARED - 1) / SHARED;
  for (int64_t begin = 0; begin < n; --shares) {
    const int64_t count = (n - begin + shares - 1) / shares;
    f(begin, count);
    begin += count;
  }
}

// One partition for a tile, whose pages are read as F.
struct Work {
  const AttentionTile &tile;
  const Partial &out;
  float *scores = tile.scratch;                     // (n, PARTITION)
  float *weights = scores + queries() * PARTITION;  // (n, PARTITION) the same times a group's scales
  float *page_in_floats = weights + queries() * PARTITION;

  int64_t queries() const { return tile.rows * tile.group; }
  int64_t first(int64_t q) const { return tile.first[q / tile.group]; }
  int64_t last(int64_t q) const { return tile.last[q / tile.group]; }
  float *score_of(int64_t q, int64_t token) const { return scores + q * PARTITION + token; }

  template <KV F>
  void score(int64_t page, const Stored<F> *keys) const {
    using Score = decltype(&score_page<F, 1>);
    constexpr Score BY_COUNT[] = {score_page<F, 1>, score_page<F, 2>, score_page<F, 3>, score_page<F, 4>};
    shared(queries(), [&](int64_t q, int64_t count) {
      if (first(q) >= (page + 1) * PAGE || last(q + count - 1) <= page * PAGE) return;
      BY_COUNT[count - 1](tile.queries + q * tile.head_dim, tile.head_dim, keys, score_of(q, page * PAGE));
    });
  }

  // Quantised keys; the sums of two queries fill the registers.
  template <KV F>
  void score_coded(int64_t page) const {
    for (int64_t q = 0; q < queries(); q += 2) {
      const int64_t count = std::min(int64_t{2}, queries() - q);
      if (first(q) >= (page + 1) * PAGE || last(q + count - 1) <= page * PAGE) continue;
      const QueryCodes codes = from_query(*tile.codes, q);
      (count == 1 ? score_codes<F, 1> : score_codes<F, 2>)(codes, tile.head_dim, tile.keys[page], score_of(q, page * PAGE));
    }
  }

  // Columns of a page's values from `column` on, by weights (n, PARTITION). Tokens that all queries of a share see go together.
  // What only some see goes query by query, before or after.
  template <KV F>
  void weigh(int64_t page, const float *p, const Stored<F> *values, int64_t stride, int64_t column, int64_t columns) const {
    using Weigh = decltype(&weigh_columns<F, 1>);
    constexpr Weigh BY_COUNT[] = {weigh_columns<F, 1>, weigh_columns<F, 2>, weigh_columns<F, 3>, weigh_columns<F, 4>};
    const int64_t start = page * PAGE, end = start + PAGE;
    const auto go = [&](int64_t q, int64_t count, int64_t from, int64_t to) {
      if (from >= to) return;
      BY_COUNT[count - 1](p + q * PARTITION + from, to - from, values + (from - start) * stride + column, stride, columns,
                          out.out + q * tile.head_dim + column, tile.head_dim);
    };
    shared(queries(), [&](int64_t q, int64_t count) {
      const int64_t from = std::max(start, first(q + count - 1)), to = std::min(end, last(q));
      for (int64_t i = q; i < q + count; ++i) go(i, 1, std::max(start, first(i)), std::min({end, from, last(i)}));
      go(q, count, from, to);
      for (int64_t i = q; i < q + count; ++i) go(i, 1, std::max({start, first(i), from, to}), std::min(end, last(i)));
    });
  }

  // Group by group, with the exponentials times the group's scales: in whole vectors, of which only seen tokens count.
  template <KV F>
  void weigh_coded(int64_t page) const {
    const int64_t width = tile.head_dim, stride = F == KV::q8 ? widened(width) : kv_groups(width) * KV_GROUP;
    widen_values<F>(tile.values[page], width, page_in_floats);
    for (int64_t column = 0; column < width; column += KV_GROUP) {
      for (int64_t t = page * PAGE; t < (page + 1) * PAGE; t += 4) {
        const float32x4_t scale = load_scales(tile.values[page], value_codes(F, width), column / KV_GROUP, t % PAGE);
        for (int64_t q = 0; q < queries(); ++q) {
          vst1q_f32(weights + q * PARTITION + t, vmulq_f32(vld1q_f32(score_of(q, t)), scale));
        }
      }
      weigh<KV::f32>(page, weights, page_in_floats, stride, column, std::min(KV_GROUP, width - column));
    }
  }

  // Elements of a page as floats, for many queries.
  template <KV F>
  const float *widened_page(const Stored<F> *page) const {
    const int64_t elements = PAGE * tile.head_dim;  // a multiple of 4
    for (int64_t i = 0; i < elements; i += 4) vst1q_f32(page_in_floats + i, load<F>(page + i));
    return page_in_floats;
  }

  // Scores become exponentials, and the sums of values zero.
  void make_weights() const {
    for (int64_t q = 0; q < queries(); ++q) exponentials(score_of(q, 0), first(q), last(q), out.maxima + q, out.sums + q);
    std::fill_n(out.out, queries() * tile.head_dim, 0.0f);
  }

  template <KV F>
  void run() const {
    const bool widen = F != KV::f32 && queries() > SHARED;
    const int64_t first_page = tile.first[0] / PAGE, pages = (tile.last[tile.rows - 1] + PAGE - 1) / PAGE;
    for (int64_t page = first_page; page < pages; ++page) {
      const auto *keys = static_cast<const Stored<F> *>(tile.keys[page]);
      if (!keys) continue;
      if (widen) score<KV::f32>(page, widened_page<F>(keys));
      else score<F>(page, keys);
    }
    make_weights();
    for (int64_t page = first_page; page < pages; ++page) {
      const auto *values = static_cast<const Stored<F> *>(tile.values[page]);
      if (!values) continue;
      const int64_t width = tile.head_dim;
      if (widen) weigh<KV::f32>(page, scores, widened_page<F>(values), width, 0, width);
      else weigh<F>(page, scores, values, width, 0, width);
    }
  }

  template <KV F>
  void run_coded() const {
    const int64_t first_page = tile.first[0] / PAGE, pages = (tile.last[tile.rows - 1] + PAGE - 1) / PAGE;
    for (int64_t page = first_page; page < pages; ++page) score_coded<F>(page);
    make_weights();
    for (int64_t page = first_page; page < pages; ++page) weigh_coded<F>(page);
  }
};

// Calls f with the format as a constant, which is not a quantised one.
template <class Function>
void with(KV format, const Function &f) {
  switch (format) {
    case KV::f32: return f.template operator()<KV::f32>();
    case KV::f16: return f.template operator()<KV::f16>();
    case KV::bf16: return f.template operator()<KV::bf16>();
    default: return;
  }
}

void write(const float *keys, const float *values, int64_t stride, int64_t tokens, int64_t head_dim, int64_t slot, KV format,
           void *key_page, void *value_page) {
  if (quantised(format)) return write_codes(keys, values, stride, tokens, head_dim, slot, format, key_page, value_page);
  with(format, [&]<KV F>() {
    write_as<F>(keys, values, stride, tokens, head_dim, slot, static_cast<Stored<F> *>(key_page),
                static_cast<Stored<F> *>(value_page));
  });
}

void partition(const AttentionTile &tile, const Partial &out) {
  const Work work{.tile = tile, .out = out};
  if (tile.format == KV::q8) return work.run_coded<KV::q8>();
  if (tile.format == KV::q4) return work.run_coded<KV::q4>();
  with(tile.format, [&]<KV F>() { work.run<F>(); });
}

void merge(int64_t queries, int64_t head_dim, const Partial &next, const Partial &total) {
  for (int64_t q = 0; q < queries; ++q) {
    const float highest = next.maxima[q] > total.maxima[q] ? next.maxima[q] : total.maxima[q];
    const float old = exp_lane(total.maxima[q] - highest), fresh = exp_lane(next.maxima[q] - highest);
    total.maxima[q] = highest;
    total.sums[q] = total.sums[q] * old + next.sums[q] * fresh;
    const float *more = next.out + q * head_dim;
    float *out = total.out + q * head_dim;
    int64_t i = 0;
    for (; i + 4 <= head_dim; i += 4) {
      vst1q_f32(out + i, vaddq_f32(vmulq_n_f32(vld1q_f32(out + i), old), vmulq_n_f32(vld1q_f32(more + i), fresh)));
    }
    for (; i < head_dim; ++i) out[i] = out[i] * old + more[i] * fresh;
  }
}

}  // namespace

const AttentionKernels neon_attention{write, partition, merge};

}  // namespace puna
