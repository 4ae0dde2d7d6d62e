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

void write(const float *key, const float *value, int64_t head_dim, int64_t slot, KV format, void *keys, void *values) {
  for (int64_t d = 0; d < head_dim; ++d) {
    store(keys, d * PAGE + slot, format, key[d]);
    store(values, slot * head_dim + d, format, value[d]);
  }
}

// One query head: scores, their maximum, exponentials in place, the sum, and the weighted sum of values.
void one_head(const float *query, int64_t head_dim, const void *const *key_pages, const void *const *value_pages, KV format,
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

void partition(const float *queries, int64_t group, int64_t head_dim, const void *const *key_pages,
               const void *const *value_pages, KV format, int64_t first, int64_t last, float *maxima, float *sums, float *out) {
  for (int64_t g = 0; g < group; ++g) {
    one_head(queries + g * head_dim, head_dim, key_pages, value_pages, format, first, last, maxima + g, sums + g,
             out + g * head_dim);
  }
}

}  // namespace

const AttentionKernels portable_attention{write, partition};

}  // namespace puna
