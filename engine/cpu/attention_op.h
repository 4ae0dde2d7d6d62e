// The attention of one layer as an MLX operation: head norms, rope, KV write into pages, paged attention.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "attention.h"
#include "cpu_op.h"

namespace puna {

// Tokens or partitions [first, last) of a sequence.
struct Span {
  int64_t first, last;
  int64_t count() const { return last - first; }
};

// Neighbouring rows of one sequence. In the queries and in the result they lie from row `at` on.
struct Rows {
  int64_t sequence, begin, count, at;
};

// What all layers of a pass share. Row r of sequence b has position past[b] + r - starts[b].
struct AttentionPlan {
  AttentionShape shape;
  float eps;         // of the head norms
  bool interleaved;  // rope turns pairs (2i, 2i + 1) rather than (i, i + dims / 2)
  std::vector<int32_t> starts;  // (B + 1,)
  std::vector<int32_t> past;    // (B,)
  std::vector<int32_t> tables;  // (B, M) page ids
  int64_t table_width;
  mx::array rope;  // (positions, dims) float32: cosines, then sines
  std::vector<Rows> written;  // rows whose tokens lie in one page
  std::vector<Rows> tiles;    // rows that attend together
  std::vector<Rows> picked;   // tiles of the picked rows alone, whose queries lie one behind the other

  AttentionPlan(AttentionShape shape, float eps, bool interleaved, std::vector<int32_t> starts, std::vector<int32_t> past,
                std::vector<int32_t> tables, int64_t table_width, const mx::array &rope,
                const std::vector<int32_t> &picks);
  int64_t rows() const { return starts.back(); }
  int64_t position(const Rows &rows, int64_t row) const { return past[rows.sequence] + rows.begin + row - starts[rows.sequence]; }
  // The tokens that a row sees.
  Span span(const Rows &rows, int64_t row) const {
    const int64_t last = position(rows, row) + 1;
    return {shape.window && last > shape.window ? last - shape.window : 0, last};
  }
  // The partitions in which rows see tokens.
  Span partitions(const Rows &rows) const {
    return {span(rows, 0).first / PARTITION, (span(rows, rows.count - 1).last + PARTITION - 1) / PARTITION};
  }
};

// Raw pointers of one call. A page is the keys of every KV head, key_bytes each, then their values, value_bytes each.
struct AttentionCall {
  const AttentionPlan &plan;
  const std::vector<Rows> &tiles;  // of the plan: which rows attend, while keys and values are all rows'
  const float *q, *k, *v, *q_norm, *k_norm;
  char *pages;
  KV format;
  float *out;
};
void run_attention(const AttentionCall &call);

// The format of pages; throws if attention knows none for the type. Quantised pages are bytes: int8 those of q8, uint8 of q4.
KV kv_format(mx::Dtype dtype);

// Elements of one page of one layer: keys and values of PAGE tokens for all KV heads.
int64_t page_elements(int64_t kv_heads, int64_t head_dim, mx::Dtype dtype);

// Pages (pages, page_elements) whose content is whatever memory holds: the system gives it page by page as it is written, so
// a cache costs what is in it. Attention never looks at a token that was not written.
mx::array unwritten_pages(int64_t pages, int64_t elements, mx::Dtype dtype);

// Throws unless the pages are such, and hold all that the plan's tables name.
void check_pages(const AttentionPlan &plan, const mx::array &pages);

// q (T, H * Dh), k and v (T, K * Dh) -> (T, H * Dh). `pages` (pages, page_elements) is written in place: it must be evaluated
// and held by the caller alone; later operations of the same stream see what was written.
mx::array attend(std::shared_ptr<const AttentionPlan> plan, const mx::array &pages, const mx::array &q, const mx::array &k,
                 const mx::array &v, const std::optional<mx::array> &q_norm, const std::optional<mx::array> &k_norm);

}  // namespace puna
