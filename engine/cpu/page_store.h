// A page of all layers as one run of bytes, layer after layer: what a cache copies, keeps elsewhere and brings back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "mlx/mlx.h"

namespace puna {

// The pages (pages, elements) of every layer, each evaluated and held by the caller alone. No pass runs meanwhile.
using LayerPages = std::vector<mlx::core::array>;

// Of one page in all layers.
size_t page_bytes(const LayerPages &layers);

// These throw where a page lies outside of the pool.
void copy_page(const LayerPages &layers, int64_t source, int64_t target);
void read_page(const LayerPages &layers, int64_t page, char *to);          // page_bytes of them
void write_page(const LayerPages &layers, int64_t page, const char *from);  // page_bytes of them

}  // namespace puna
