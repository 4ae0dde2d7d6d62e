// Quantised pages: 8 or 4 bits for a number, and a scale (bf16) for each token, head and group of 32 dims.
//
// A number stands for its code times the scale of its group, and depends on its own token alone: nothing is coded again when
// other tokens join the page. Codes are integers from -127 to 127, in q4 one of 16 of them (CODEBOOK). A group that holds
// what is no finite number has the scale NaN.
//
//     keys     q8 (Dh / 4, PAGE, 4), code + 128 in a byte       so that 16 tokens by 4 dims are an operand of a product of bytes
//              q4 (Dh / 8, PAGE, 4), dim i of eight in the low half of byte i, dim 4 + i in the high half
//     values   q8 (PAGE, Dh), code in a byte, Dh filled up to whole 16
//              q4 (PAGE, groups, 16), dim i of a group in the low half of byte i, dim 16 + i in the high half
//     behind either: the scales (groups, PAGE), so that they too are vectors of tokens
#pragma once

#include <cstdint>

#include "attention.h"

namespace puna {

// What the indices of q4 stand for. A group's scale has the sign that makes its largest number, by magnitude, 127; the others
// are where they make the mean square error least over numbers from normal, Laplace and shifted normal distributions: by 7 %
// less than with equal distances for normal ones, by 16 % for Laplace's.
constexpr int8_t CODEBOOK[16] = {-113, -89, -69, -53, -38, -25, -13, -2, 8, 20, 32, 46, 62, 80, 100, 127};

// Queries are coded for a head: their largest is this, so that the high and the low byte are signed bytes.
constexpr float QUERY_TOP = 127 * 256;

// Queries of quantised pages, filled up with zeros to whole groups: (n, dims).
struct QueryCodes {
  int64_t dims;
  int16_t *codes;
  int8_t *high, *low;  // code = 256 high + low
  int32_t *sums;       // (n, groups) of the codes
  float *scales;       // (n,)
};

// Those from query `first` on.
static inline QueryCodes from_query(const QueryCodes &all, int64_t first) {
  const int64_t at = first * all.dims;
  return {all.dims, all.codes + at, all.high + at, all.low + at, all.sums + at / KV_GROUP, all.scales + first};
}

// Codes n queries (n, Dh).
void code_queries(const float *queries, int64_t n, int64_t head_dim, const QueryCodes &to);

// AttentionKernels::write for quantised pages: the same for all instruction sets.
void write_codes(const float *keys, const float *values, int64_t stride, int64_t tokens, int64_t head_dim, int64_t slot, KV format,
                 void *key_page, void *value_page);

}  // namespace puna
