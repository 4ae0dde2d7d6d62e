// Coding of keys, values and queries: plain C++ that every instruction set calls, so that codes are equal by construction.
#include "kv_codes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace puna {
namespace {

constexpr uint32_t INFINITE = 0x7f800000;
constexpr float LEAST = 0x1p-100f;  // a group that is smaller counts as zero, so that no scale's inverse is infinite
constexpr uint16_t NOT_A_NUMBER = 0x7fc0;  // as bf16

// The bits of the largest magnitude, which order as magnitudes do; infinity and what is no number come last.
uint32_t largest(const float *x, int64_t count) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::bit_cast<uint32_t>(x[i]) & 0x7fffffff);
  return most;
}

// To the nearest integer, to even between two, for magnitudes below 2^22.
float rounded(float x) {
  constexpr float ONES = 0x1.8p23f;  // where neighbouring floats differ by one
  return (x + ONES) - ONES;
}

// To bf16, away from zero: so that no number is more than 127 times its scale.
uint16_t scale_of(float step) { return static_cast<uint16_t>((std::bit_cast<uint32_t>(step) + 0xffff) >> 16); }

// Codes from -127 to 127.
void code8(const float *x, int64_t count, float inverse, int8_t *codes) {
  for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<int8_t>(static_cast<int32_t>(rounded(x[i] * inverse)));
}

// Indices of the nearest in the codebook.
void code4(const float *x, int64_t count, float inverse, int8_t *indices) {
  int32_t above[KV_GROUP] = {};
  for (int i = 0; i < 15; ++i) {
    const float border = (static_cast<float>(CODEBOOK[i]) + static_cast<float>(CODEBOOK[i + 1])) * 0.5f;
    for (int64_t d = 0; d < count; ++d) above[d] += x[d] * inverse > border;
  }
  for (int64_t d = 0; d < count; ++d) indices[d] = static_cast<int8_t>(above[d]);
}

// Codes a group; gives its scale. Codes of a group whose scale is zero or no number do not matter.
uint16_t code_group(const float *x, int64_t count, KV format, int8_t *codes) {
  const uint32_t bits = largest(x, count);
  std::fill_n(codes, count, int8_t{0});
  if (bits >= INFINITE) return NOT_A_NUMBER;
  float most = std::bit_cast<float>(bits);
  if (most < LEAST) return 0;
  if (format == KV::q4) {  // the scale takes the sign of the first of the largest
    most = *std::find_if(x, x + count, [&](float y) { return std::fabs(y) == most; });
  }
  const uint16_t scale = scale_of(most / 127);
  const float inverse = 1 / std::bit_cast<float>(static_cast<uint32_t>(scale) << 16);
  (format == KV::q8 ? code8 : code4)(x, count, inverse, codes);
  return scale;
}

void put_key(KV format, int64_t d, int64_t token, int8_t code, uint8_t *page) {
  if (format == KV::q8) {
    page[(d / 4 * PAGE + token) * 4 + d % 4] = static_cast<uint8_t>(code + 128);
    return;
  }
  uint8_t &pair = page[(d / 8 * PAGE + token) * 4 + d % 4];
  pair = static_cast<uint8_t>(d % 8 < 4 ? (pair & 0xf0) | code : (pair & 0x0f) | code << 4);
}

void put_value(KV format, int64_t head_dim, int64_t d, int64_t token, int8_t code, uint8_t *page) {
  if (format == KV::q8) {
    page[token * widened(head_dim) + d] = static_cast<uint8_t>(code);
    return;
  }
  uint8_t &pair = page[(token * kv_groups(head_dim) + d / KV_GROUP) * 16 + d % 16];
  pair = static_cast<uint8_t>(d % KV_GROUP < 16 ? (pair & 0xf0) | code : (pair & 0x0f) | code << 4);
}

// Codes the numbers of a token and calls put(d, code) for each; the scales go to the token's place in all groups.
template <class Put>
void code_token(const float *x, int64_t head_dim, KV format, uint16_t *scales, const Put &put) {
  for (int64_t g = 0; g * KV_GROUP < head_dim; ++g) {
    int8_t codes[KV_GROUP];
    const int64_t from = g * KV_GROUP, count = std::min(KV_GROUP, head_dim - from);
    scales[g * PAGE] = code_group(x + from, count, format, codes);
    for (int64_t i = 0; i < count; ++i) put(from + i, codes[i]);
  }
}

}  // namespace

void write_codes(const float *keys, const float *values, int64_t stride, int64_t tokens, int64_t head_dim, int64_t slot, KV format,
                 void *key_page, void *value_page) {
  auto *const key = static_cast<uint8_t *>(key_page), *const value = static_cast<uint8_t *>(value_page);
  auto *const key_scales = reinterpret_cast<uint16_t *>(key + key_codes(format, head_dim));
  auto *const value_scales = reinterpret_cast<uint16_t *>(value + value_codes(format, head_dim));
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t at = slot + t;
    code_token(keys + t * head_dim, head_dim, format, key_scales + at,
               [&](int64_t d, int8_t code) { put_key(format, d, at, code, key); });
    code_token(values + t * stride, head_dim, format, value_scales + at,
               [&](int64_t d, int8_t code) { put_value(format, head_dim, d, at, code, value); });
  }
}

void code_queries(const float *queries, int64_t n, int64_t head_dim, const QueryCodes &to) {
  for (int64_t q = 0; q < n; ++q) {
    const float *x = queries + q * head_dim;
    int16_t *codes = to.codes + q * to.dims;
    std::fill_n(codes, to.dims, int16_t{0});
    const uint32_t bits = largest(x, head_dim);
    const float most = std::bit_cast<float>(bits);
    to.scales[q] = bits >= INFINITE ? std::numeric_limits<float>::quiet_NaN() : most < LEAST ? 0 : most / QUERY_TOP;
    if (to.scales[q] > 0) {
      const float inverse = QUERY_TOP / most;
      for (int64_t d = 0; d < head_dim; ++d) codes[d] = static_cast<int16_t>(static_cast<int32_t>(rounded(x[d] * inverse)));
    }
    for (int64_t d = 0; d < to.dims; ++d) {
      to.high[q * to.dims + d] = static_cast<int8_t>((codes[d] + 128) >> 8);
      to.low[q * to.dims + d] = static_cast<int8_t>(codes[d] - 256 * to.high[q * to.dims + d]);
    }
    for (int64_t g = 0; g < to.dims / KV_GROUP; ++g) {
      int32_t sum = 0;
      for (int64_t d = g * KV_GROUP; d < (g + 1) * KV_GROUP; ++d) sum += codes[d];
      to.sums[q * (to.dims / KV_GROUP) + g] = sum;
    }
  }
}

}  // namespace puna
