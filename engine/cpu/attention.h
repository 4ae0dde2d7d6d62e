// Paged grouped-query attention: what an instruction set provides.
//
// A score is one ascending chain of FMAs over Dh, from zero. Within a partition: the maximum of the scores that the row sees, the
// exponentials of their distances to it, the sum of these in LANES lanes (lane = token mod LANES, folded), and of each column of
// the values one ascending chain of FMAs over the seen tokens, from zero. Partitions are merged in ascending order with plain
// products and sums. So a row has the same bits whatever shares its tile, its batch or its chunk.
//
// Over quantised pages (kv_codes.h) the query is coded too, in 16 bits with a scale for its head. A score is one ascending
// chain of FMAs over the groups of 32 dims, from zero, of the exact sum of products of codes (an int32, rounded to float32) and
// the token's scale of the group; then it is multiplied by the query's scale. The weight of a token in a group of columns is
// its exponential times the token's scale of the group, rounded, and multiplies the code in the column's chain.
#pragma once

#include <cstdint>

namespace puna {

enum class KV : int { f32, f16, bf16, q8, q4 };
static constexpr bool quantised(KV format) { return format == KV::q8 || format == KV::q4; }

// A page of one layer holds PAGE tokens: for each KV head the keys as (Dh, PAGE), so that a lane is a token and a
// score is one chain of FMAs over Dh, then for each KV head the values as (PAGE, Dh).
constexpr int64_t PAGE = 32;

constexpr int64_t KV_GROUP = 32;  // dims that share a scale in quantised pages
static constexpr int64_t kv_groups(int64_t head_dim) { return (head_dim + KV_GROUP - 1) / KV_GROUP; }

// Softmax and weighted sum run over partitions of this many tokens at absolute positions, merged in ascending order.
constexpr int64_t PARTITION = 256;

// A tile has as many rows as make this many queries, or one.
constexpr int64_t TILE_QUERIES = 64;

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;  // keys further back than this are not seen; 0 is no window
};

struct QueryCodes;

// What attention over some tokens gives for n queries.
struct Partial {
  float *maxima;  // (n,) of the scores
  float *sums;    // (n,) of the exponentials
  float *out;     // (n, Dh) the values weighed by the exponentials
};

// Neighbouring rows of a sequence, one KV head, one partition.
//
//     row 0   . . # # # # . . . . . .      Pages hold anything where nothing was written, infinities and NaN too, and tokens
//     row 1   . . . # # # # . . . . .      that one row sees another does not: no token outside of [first, last) may touch
//     row 2   . . . . # # # # . . . .      a row's sums, not even with the weight zero.
struct AttentionTile {
  int64_t rows, group, head_dim;
  const float *queries;         // (rows, G, Dh), already scaled
  const QueryCodes *codes;      // of the same, for quantised pages
  const int32_t *first, *last;  // (rows,) each row sees tokens [first, last) of the partition, one at least; both ascend
  KV format;
  const void *const *keys;    // page i holds tokens [PAGE i, PAGE i + PAGE) of the partition as (Dh, PAGE);
  const void *const *values;  // (PAGE, Dh). Null where no row sees a token.
  const void *const *next;    // the pages of keys of the partition that is read after this one, to prefetch; may be null
  float *scratch;             // attention_scratch() floats, on a cache line
};

constexpr int64_t widened(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Bytes of one head's keys in a page: the codes, or the numbers themselves, and all.
static constexpr int64_t key_codes(KV format, int64_t head_dim) {
  switch (format) {
    case KV::f32: return PAGE * head_dim * 4;
    case KV::f16:
    case KV::bf16: return PAGE * head_dim * 2;
    case KV::q8: return PAGE * 4 * ((head_dim + 3) / 4);
    case KV::q4: return PAGE * 4 * ((head_dim + 7) / 8);
  }
  return 0;
}
static constexpr int64_t scale_bytes(KV format, int64_t head_dim) { return quantised(format) ? PAGE * 2 * kv_groups(head_dim) : 0; }
static constexpr int64_t key_bytes(KV format, int64_t head_dim) { return key_codes(format, head_dim) + scale_bytes(format, head_dim); }

// The same of its values.
static constexpr int64_t value_codes(KV format, int64_t head_dim) {
  if (format == KV::q8) return PAGE * widened(head_dim);
  return format == KV::q4 ? PAGE * KV_GROUP / 2 * kv_groups(head_dim) : key_codes(format, head_dim);
}
static constexpr int64_t value_bytes(KV format, int64_t head_dim) { return value_codes(format, head_dim) + scale_bytes(format, head_dim); }

// A tile's scores, their products with two groups' scales and its queries again, and a partition of keys or values in float32,
// all in whole vectors.
constexpr int64_t attention_scratch(int64_t queries, int64_t head_dim) {
  return queries * (3 * PARTITION + widened(head_dim)) + PARTITION * widened(head_dim);
}

struct AttentionKernels {
  // Writes tokens of one head into the slots [slot, slot + tokens) of a page: keys (tokens, Dh), values with `stride` floats from
  // one token to the next.
  void (*write)(const float *keys, const float *values, int64_t stride, int64_t tokens, int64_t head_dim, int64_t slot, KV format,
                void *key_page, void *value_page);
  // Gives for the rows * G queries of a tile what they make of the partition.
  void (*partition)(const AttentionTile &tile, const Partial &out);
  // Adds to `total` what the next partition gave: of both weights the exponentials of their distances to the higher maximum.
  void (*merge)(int64_t queries, int64_t head_dim, const Partial &next, const Partial &total);
};

extern const AttentionKernels portable_attention;
extern const AttentionKernels avx512_attention;
extern const AttentionKernels avx2_attention;
extern const AttentionKernels neon_attention;

}  // namespace puna
