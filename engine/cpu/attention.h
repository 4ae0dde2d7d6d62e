// Paged grouped-query attention: what an instruction set provides.
//
// A score is one ascending chain of FMAs over Dh, from zero. Within a partition: the maximum of the scores that the row sees, the
// exponentials of their distances to it, the sum of these in LANES lanes (lane = token mod LANES, folded), and of each column of
// the values one ascending chain of FMAs over the seen tokens, from zero. Partitions are merged in ascending order with plain
// products and sums. So a row has the same bits whatever shares its tile, its batch or its chunk.
#pragma once

#include <cstdint>

namespace puna {

enum class KV : int { f32, f16, bf16 };

// A page of one layer holds PAGE tokens: for each KV head the keys as (Dh, PAGE), so that a lane is a token and a
// score is one chain of FMAs over Dh, then for each KV head the values as (PAGE, Dh).
constexpr int64_t PAGE = 32;

// Softmax and weighted sum run over partitions of this many tokens at absolute positions, merged in ascending order.
constexpr int64_t PARTITION = 256;

// A tile has as many rows as make this many queries, or one.
constexpr int64_t TILE_QUERIES = 64;

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;  // keys further back than this are not seen; 0 is no window
};

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
  const int32_t *first, *last;  // (rows,) each row sees tokens [first, last) of the partition, one at least; both ascend
  KV format;
  const void *const *keys;    // page i holds tokens [PAGE i, PAGE i + PAGE) of the partition as (Dh, PAGE);
  const void *const *values;  // (PAGE, Dh). Null where no row sees a token.
  const void *next;           // the page of keys that is read after this partition, to prefetch; may be null
  float *scratch;             // attention_scratch() floats, on a cache line
};

constexpr int64_t widened(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// A tile's scores and its queries again, and a partition of keys or values in float32, all in whole vectors.
constexpr int64_t attention_scratch(int64_t queries, int64_t head_dim) {
  return queries * (PARTITION + widened(head_dim)) + PARTITION * widened(head_dim);
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
