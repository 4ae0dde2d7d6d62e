// Paged attention in plain C++: the twin that defines what the others compute.
#include "attention.h"

#include <limits>

#include "halves.h"
#include "kv_codes.h"
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
  if (quantised(format)) return write_codes(keys, values, stride, tokens, head_dim, slot, format, key_page, value_page);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t d = 0; d < head_dim; ++d) {
      store(key_page, d * PAGE + slot + t, format, keys[t * head_dim + d]);
      store(value_page, (slot + t) * head_dim + d, format, values[t * stride + d]);
    }
  }
}

// Pages of a partition as numbers, or as codes and scales; tokens count from the partition's start.
struct Pages {
  const AttentionTile &tile;

  static int32_t nibble(const uint8_t *pairs, int64_t i, bool high) { return CODEBOOK[high ? pairs[i] >> 4 : pairs[i] & 0xf]; }
  static float scale(const void *page, int64_t codes, int64_t group, int64_t token) {
    return from_bf16(reinterpret_cast<const uint16_t *>(static_cast<const uint8_t *>(page) + codes)[group * PAGE + token % PAGE]);
  }
  float key(int64_t d, int64_t token) const { return load(tile.keys[token / PAGE], d * PAGE + token % PAGE, tile.format); }
  int32_t key_code(int64_t d, int64_t token) const {
    const auto *page = static_cast<const uint8_t *>(tile.keys[token / PAGE]);
    if (tile.format == KV::q8) return page[(d / 4 * PAGE + token % PAGE) * 4 + d % 4] - 128;
    return nibble(page, (d / 8 * PAGE + token % PAGE) * 4 + d % 4, d % 8 >= 4);
  }
  float key_scale(int64_t group, int64_t token) const {
    return scale(tile.keys[token / PAGE], key_codes(tile.format, tile.head_dim), group, token);
  }
  float value(int64_t d, int64_t token) const {
    return load(tile.values[token / PAGE], token % PAGE * tile.head_dim + d, tile.format);
  }
  int32_t value_code(int64_t d, int64_t token) const {
    const auto *page = static_cast<const uint8_t *>(tile.values[token / PAGE]);
    if (tile.format == KV::q8) return static_cast<int8_t>(page[token % PAGE * widened(tile.head_dim) + d]);
    return nibble(page, (token % PAGE * kv_groups(tile.head_dim) + d / KV_GROUP) * 16 + d % 16, d % KV_GROUP >= 16);
  }
  float value_scale(int64_t group, int64_t token) const {
    return scale(tile.values[token / PAGE], value_codes(tile.format, tile.head_dim), group, token);
  }
};

float score_of(const Pages &pages, int64_t q, int64_t token) {
  const AttentionTile &tile = pages.tile;
  float score = 0;
  for (int64_t d = 0; d < tile.head_dim; ++d) score = std::fma(tile.queries[q * tile.head_dim + d], pages.key(d, token), score);
  return score;
}

float coded_score_of(const Pages &pages, int64_t q, int64_t token) {
  const QueryCodes query = from_query(*pages.tile.codes, q);
  const int64_t width = pages.tile.head_dim;
  float score = 0;
  for (int64_t g = 0; g < kv_groups(width); ++g) {
    int32_t sum = 0;
    for (int64_t d = g * KV_GROUP; d < width && d < (g + 1) * KV_GROUP; ++d) sum += query.codes[d] * pages.key_code(d, token);
    score = std::fma(static_cast<float>(sum), pages.key_scale(g, token), score);
  }
  return score * query.scales[0];
}

float mixed(const Pages &pages, const float *p, int64_t first, int64_t last, int64_t d) {
  float total = 0;
  for (int64_t t = first; t < last; ++t) total = std::fma(p[t], pages.value(d, t), total);
  return total;
}

float coded_mixed(const Pages &pages, const float *p, int64_t first, int64_t last, int64_t d) {
  float total = 0;
  for (int64_t t = first; t < last; ++t) {
    const float weight = p[t] * pages.value_scale(d / KV_GROUP, t);
    total = std::fma(weight, static_cast<float>(pages.value_code(d, t)), total);
  }
  return total;
}

// Scores, their maximum, exponentials in place, the sum, and the weighted sum of values.
void one_query(const Pages &pages, int64_t q, int64_t first, int64_t last, float *maximum, float *sum, float *out) {
  const bool coded = quantised(pages.tile.format);
  float p[PARTITION];
  float highest = -std::numeric_limits<float>::infinity();
  for (int64_t t = first; t < last; ++t) {
    p[t] = (coded ? coded_score_of : score_of)(pages, q, t);
    highest = p[t] > highest ? p[t] : highest;
  }
  float lanes[LANES] = {};
  for (int64_t t = first; t < last; ++t) {
    p[t] = exp_lane(p[t] - highest);
    lanes[t % LANES] = lanes[t % LANES] + p[t];
  }
  for (int64_t d = 0; d < pages.tile.head_dim; ++d) out[d] = (coded ? coded_mixed : mixed)(pages, p, first, last, d);
  *maximum = highest;
  *sum = fold(lanes);
}

void partition(const AttentionTile &tile, const Partial &out) {
  for (int64_t q = 0; q < tile.rows * tile.group; ++q) {
    const int64_t row = q / tile.group;
    one_query(Pages{tile}, q, tile.first[row], tile.last[row], out.maxima + q, out.sums + q, out.out + q * tile.head_dim);
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
