// Paged grouped-query attention: what an instruction set provides.
#pragma once

#include <cstdint>

namespace puna {

enum class KV : int { f32, f16, bf16 };

// A page of one layer holds PAGE tokens: for each KV head the keys as (Dh, PAGE), so that a lane is a token and a
// score is one chain of FMAs over Dh, then for each KV head the values as (PAGE, Dh).
constexpr int64_t PAGE = 32;

// Softmax and weighted sum run over partitions of this many tokens at absolute positions, merged in ascending order.
constexpr int64_t PARTITION = 256;

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;  // keys further back than this are not seen; 0 is no window
};

struct AttentionKernels {
  // Writes a token's key (Dh) into lane `slot` of a key page, and its value into row `slot` of a value page.
  void (*write)(const float *key, const float *value, int64_t head_dim, int64_t slot, KV format, void *keys, void *values);
  // One partition for one query row and KV head: `queries` is (G, Dh) already scaled; pages[i] cover tokens
  // [32 i, 32 i + 32) of the partition, of which [first, last) are seen. Gives per query head the maximum score, the sum of
  // exponentials and the weighted sum of values (G, Dh).
  void (*partition)(const float *queries, int64_t group, int64_t head_dim, const void *const *key_pages,
                    const void *const *value_pages, KV format, int64_t first, int64_t last, float *maxima, float *sums,
                    float *out);
};

extern const AttentionKernels portable_attention;
extern const AttentionKernels avx512_attention;

}  // namespace puna
