// Paged attention in plain C++: the twin that defines what the others compute.
#include "attention.h"

#include <limits>

#include "halves.h"
#include "lanes.h"

namespace puna {
namespace {

float load(const void *data, int64_t i, KV format) {
  if (format == KV::f32) return static_cast<const float *>(data)[i];
  const uint16_t half = static_cast<const uint16_t *>(data)[i];
  return format == KV::f16 ? from_f16(half) : from_bf16(half);
}

void store(void *data, int64_t i, KV format, float value) {
  if (format == KV::f32) static_cast<float *>(data)[i] = value;
  else static_cast<uint16_t *>(data)[i] = format == KV::f16 ? to_f16(value) : to_bf16(value);
}

void write(const float *keys, const float *values, int64_t stride, int64_t tokens, int64_t head_dim, int64_t slot, KV format,
           void *key_page, void *value_page) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t d = 0; d < head_dim; ++d) {
      store(key_page, d * PAGE + slot + t, format, keys[t * head_dim + d]);
      store(value_page, (slot + t) * head_dim + d, format, values[t * stride + d]);
    }
  }
}

// Scores, their maximum, exponentials in place, the sum, and the weighted sum of values.
void one_query(const float *query, int64_t head_dim, const void *const *key_pages, const void *const *value_pages, KV format,
               int64_t first, int64_t last, float *maximum, float *sum, float *out) {
  float p[PARTITION];
  float highest = -std::numeric_limits<float>::infinity();
  for (int64_t t = first; t < last; ++t) {
    float score = 0;
    for (int64_t d = 0; d < head_dim; ++d) {
      score = std::fma(query[d], load(key_pages[t / PAGE], d * PAGE + t % PAGE, format), score);
    }
    p[t] = score;
    highest = score > highest ? score : highest;
  }
  float lanes[LANES] = {};
  for (int64_t t = first; t < last; ++t) {
    p[t] = exp_lane(p[t] - highest);
    lanes[t % LANES] = lanes[t % LANES] + p[t];
  }
  for (int64_t d = 0; d < head_dim; ++d) {
    float total = 0;
    for (int64_t t = first; t < last; ++t) {
      total = std::fma(p[t], load(value_pages[t / PAGE], t % PAGE * head_dim + d, format), total);
    }
    out[d] = total;
  }
  *maximum = highest;
  *sum = fold(lanes);
}

void partition(const AttentionTile &tile, const Partial &out) {
  const int64_t width = tile.head_dim;
  for (int64_t q = 0; q < tile.rows * tile.group; ++q) {
    const int64_t row = q / tile.group;
    one_query(tile.queries + q * width, width, tile.keys, tile.values, tile.format, tile.first[row], tile.last[row], out.maxima + q,
              out.sums + q, out.out + q * width);
  }
}

void merge(int64_t queries, int64_t head_dim, const Partial &next, const Partial &total) {
  for (int64_t q = 0; q < queries; ++q) {
    const float highest = next.maxima[q] > total.maxima[q] ? next.maxima[q] : total.maxima[q];
    const float old = exp_lane(total.maxima[q] - highest), fresh = exp_lane(next.maxima[q] - highest);
    total.maxima[q] = highest;
    total.sums[q] = total.sums[q] * old + next.sums[q] * fresh;
    for (int64_t i = q * head_dim; i < (q + 1) * head_dim; ++i) total.out[i] = total.out[i] * old + next.out[i] * fresh;
  }
}

}  // namespace

const AttentionKernels portable_attention{write, partition, merge};

}  // namespace puna
