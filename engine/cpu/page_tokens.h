// Keys and values token by token, as a pool of MLX's kernels has them, in and out of pages. Not of quantised pages.
#pragma once

#include <cstdint>
#include <vector>

#include "mlx/mlx.h"

namespace puna {

// A sequence's tokens from `first` on, of one layer: its pages are `table`, of the layer's `pages`. Keys and values are
// (tokens, 2, K, Dh), of the type of the pages; both arrays are evaluated, and no pass runs meanwhile.
void put_tokens(const mlx::core::array &pages, const std::vector<int32_t> &table, int64_t first, const mlx::core::array &tokens);
mlx::core::array take_tokens(const mlx::core::array &pages, const std::vector<int32_t> &table, int64_t first, int64_t count,
                             int64_t kv_heads, int64_t head_dim);

}  // namespace puna
