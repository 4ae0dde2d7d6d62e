// Writing keys and values, then attention of each row and KV head over partitions in ascending order.
#include "attention_op.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "kernels.h"
#include "kv_codes.h"
#include "pool.h"

namespace puna {

KV kv_format(mx::Dtype dtype) {
  if (dtype == mx::float32) return KV::f32;
  if (dtype == mx::float16) return KV::f16;
  if (dtype == mx::bfloat16) return KV::bf16;
  if (dtype == mx::int8) return KV::q8;
  if (dtype == mx::uint8) return KV::q4;
  throw std::invalid_argument("[attend] pages must be float32, float16, bfloat16, int8 (q8) or uint8 (q4)");
}

namespace {

struct Call : AttentionCall {
  int64_t group() const { return plan.shape.heads / plan.shape.kv_heads; }
  int64_t key_size() const { return key_bytes(format, plan.shape.head_dim); }
  int64_t value_size() const { return value_bytes(format, plan.shape.head_dim); }
  char *page(int64_t sequence, int64_t index) const {
    return pages + plan.tables[sequence * plan.table_width + index] * plan.shape.kv_heads * (key_size() + value_size());
  }
  char *keys(int64_t sequence, int64_t index, int64_t head) const { return page(sequence, index) + head * key_size(); }
  char *values(int64_t sequence, int64_t index, int64_t head) const {
    return page(sequence, index) + plan.shape.kv_heads * key_size() + head * value_size();
  }
  // The G heads of row `row` that share a KV head. Here lie the queries until their sums take the place.
  float *heads_out(int64_t row, int64_t head) const { return out + (row * plan.shape.kv_heads + head) * group() * plan.shape.head_dim; }
};

// A thread's own memory, on a cache line; it grows to the most that was asked for.
class Floats {
 public:
  float *at_least(int64_t count) {
    if (count > count_) {
      memory_.reset(static_cast<float *>(::operator new(count * sizeof(float), LINE)));
      count_ = count;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t LINE{64};
  struct Free {
    void operator()(float *memory) const { ::operator delete(memory, LINE); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t count_ = 0;
};

// Takes pieces of memory, each on a cache line.
struct Pieces {
  float *next;

  static constexpr int64_t line(int64_t count) { return (count + 15) / 16 * 16; }
  static constexpr int64_t partial_floats(int64_t queries, int64_t width) { return 2 * line(queries) + line(queries * width); }

  float *take(int64_t count) { return std::exchange(next, next + line(count)); }
  template <class T>
  T *take_of(int64_t count) { return reinterpret_cast<T *>(take((count * sizeof(T) + 3) / 4)); }
  Partial partial(int64_t queries, int64_t width) { return {take(queries), take(queries), take(queries * width)}; }
};

// Plain products and sums, which every compiler rounds alike.
void turn_pairs(const float *cosines, const float *sines, int64_t half, float *x) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cosines[i] - b * sines[i];
    x[2 * i + 1] = b * cosines[i] + a * sines[i];
  }
}

void turn_halves(const float *cosines, const float *sines, int64_t half, float *x) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosines[i] - b * sines[i];
    x[i + half] = b * cosines[i] + a * sines[i];
  }
}

// A head of q or k as attention wants it: normed where the model norms heads, turned by rope.
void prepare(const Call &c, const float *from, const float *norm, int64_t position, float *to) {
  const int64_t width = c.plan.shape.head_dim, half = c.plan.rope.shape(1) / 2;
  if (norm) kernels().rows->norm(from, norm, c.plan.eps, width, to);
  else std::memcpy(to, from, width * sizeof(float));
  const float *cosines = c.plan.rope.data<float>() + position * 2 * half;
  (c.plan.interleaved ? turn_pairs : turn_halves)(cosines, cosines + half, half, to);
}

// Rows whose tokens lie in one page: keys and values are written.
void write_rows(const Call &c, const Rows &rows) {
  thread_local Floats memory;
  const AttentionShape &s = c.plan.shape;
  const int64_t width = s.head_dim, position = c.plan.position(rows, 0);
  float *keys = memory.at_least(PAGE * width);
  for (int64_t h = 0; h < s.kv_heads; ++h) {
    const int64_t from = (rows.begin * s.kv_heads + h) * width, stride = s.kv_heads * width;
    for (int64_t r = 0; r < rows.count; ++r) prepare(c, c.k + from + r * stride, c.k_norm, position + r, keys + r * width);
    kernels().attention->write(keys, c.v + from, stride, rows.count, width, position % PAGE, c.format,
                               c.keys(rows.sequence, position / PAGE, h), c.values(rows.sequence, position / PAGE, h));
  }
}

// Rows whose queries are made ready in the place of the result.
void prepare_queries(const Call &c, const Rows &rows) {
  const AttentionShape &s = c.plan.shape;
  const int64_t width = s.head_dim, position = c.plan.position(rows, 0);
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t at = (rows.at + r) * s.heads * width;
    for (int64_t i = at; i < at + s.heads * width; i += width) prepare(c, c.q + i, c.q_norm, position + r, c.out + i);
    for (int64_t i = at; i < at + s.heads * width; ++i) c.out[i] *= s.scale;
  }
}

// The rows of a tile that see tokens of partition `index`, and which of them saw none before.
struct Seeing {
  int64_t begin, fresh, end;

  Seeing(const AttentionPlan &plan, const Rows &rows, int64_t index) : begin(0), fresh(0), end(rows.count) {
    const auto span = [&](int64_t r) { return plan.span(rows, r); };
    while (span(begin).last <= index * PARTITION) ++begin;
    while (span(end - 1).first >= (index + 1) * PARTITION) --end;
    for (fresh = begin; fresh < end && span(fresh).first < index * PARTITION; ++fresh) {}
  }
};

Partial from_row(const Partial &p, int64_t row, int64_t group, int64_t width) {
  return {p.maxima + row * group, p.sums + row * group, p.out + row * group * width};
}

// A tile's queries for one KV head.
struct Queries {
  float *floats;  // (rows, G, Dh)
  QueryCodes codes;

  static int64_t room(int64_t n, int64_t width) {
    const int64_t groups = kv_groups(width);
    return Pieces::line(n * width) + Pieces::line(n * groups * KV_GROUP / 2) + 2 * Pieces::line(n * groups * KV_GROUP / 4) +
           Pieces::line(n * groups) + Pieces::line(n);
  }
  static Queries in(Pieces &pieces, int64_t n, int64_t width) {
    const int64_t dims = kv_groups(width) * KV_GROUP;
    return {pieces.take(n * width),
            {dims, pieces.take_of<int16_t>(n * dims), pieces.take_of<int8_t>(n * dims), pieces.take_of<int8_t>(n * dims),
             pieces.take_of<int32_t>(n * dims / KV_GROUP), pieces.take(n)}};
  }
};

// A tile through one KV head, of which a unit of work takes some partitions.
struct HeadTile {
  const Call &c;
  const Rows &rows;
  int64_t head;

  int64_t group() const { return c.group(); }
  int64_t width() const { return c.plan.shape.head_dim; }
  int64_t queries() const { return rows.count * group(); }

  // What partition `index` gives, for the rows that see of it.
  void attend(int64_t index, const Queries &queries, float *scratch, const Partial &out) const {
    const Seeing seeing(c.plan, rows, index);
    const int64_t start = index * PARTITION;
    int32_t first[TILE_QUERIES], last[TILE_QUERIES];
    for (int64_t r = seeing.begin; r < seeing.end; ++r) {
      const Span span = c.plan.span(rows, r);
      first[r] = static_cast<int32_t>(std::max(span.first - start, int64_t{0}));
      last[r] = static_cast<int32_t>(std::min(span.last - start, PARTITION));
    }
    const void *keys[PARTITION / PAGE] = {}, *values[PARTITION / PAGE] = {}, *next[PARTITION / PAGE] = {};
    const int64_t end = c.plan.span(rows, rows.count - 1).last, to_come = std::min(end - start - PARTITION, PARTITION);
    for (int64_t t = first[seeing.begin] / PAGE; t * PAGE < last[seeing.end - 1]; ++t) {
      keys[t] = c.keys(rows.sequence, start / PAGE + t, head);
      values[t] = c.values(rows.sequence, start / PAGE + t, head);
    }
    for (int64_t t = 0; t * PAGE < to_come; ++t) next[t] = c.keys(rows.sequence, (start + PARTITION) / PAGE + t, head);
    const QueryCodes codes = from_query(queries.codes, seeing.begin * group());
    const AttentionTile tile{seeing.end - seeing.begin, group(), width(), queries.floats + seeing.begin * group() * width(), &codes,
                             first + seeing.begin, last + seeing.begin, c.format, keys, values, next, scratch};
    kernels().attention->partition(tile, from_row(out, seeing.begin, group(), width()));
  }

  // Adds it to what the partitions before gave.
  void add(int64_t index, const Partial &next, const Partial &total) const {
    const Seeing seeing(c.plan, rows, index);
    const auto of = [&](const Partial &p, int64_t row) { return from_row(p, row, group(), width()); };
    kernels().attention->merge((seeing.fresh - seeing.begin) * group(), width(), of(next, seeing.begin), of(total, seeing.begin));
    const Partial from = of(next, seeing.fresh), to = of(total, seeing.fresh);
    const int64_t fresh = (seeing.end - seeing.fresh) * group();
    std::copy_n(from.maxima, fresh, to.maxima);
    std::copy_n(from.sums, fresh, to.sums);
    std::copy_n(from.out, fresh * width(), to.out);
  }

  void finish(const Partial &total) const {
    for (int64_t q = 0; q < queries(); ++q) {
      float *out = c.heads_out(rows.at + q / group(), head) + q % group() * width();
      for (int64_t d = 0; d < width(); ++d) out[d] = total.out[q * width() + d] / total.sums[q];
    }
  }
};

// Partitions [begin, end) of a tile through one KV head. Where they are not all of the tile's, what each gives is kept
// at `kept`, to be merged when all are there.
struct Unit {
  const Rows *rows;
  int64_t head, begin, end;
  float *kept;
};

void attend_unit(const Call &c, const Unit &unit) {
  thread_local Floats memory;
  const HeadTile tile{c, *unit.rows, unit.head};
  const int64_t n = tile.queries(), width = tile.width(), part = Pieces::partial_floats(n, width);
  Pieces pieces{memory.at_least(2 * part + Queries::room(n, width) + attention_scratch(n, width))};
  const Queries queries = Queries::in(pieces, n, width);
  for (int64_t r = 0; r < tile.rows.count; ++r) {
    std::copy_n(c.heads_out(tile.rows.at + r, unit.head), tile.group() * width, queries.floats + r * tile.group() * width);
  }
  if (quantised(c.format)) code_queries(queries.floats, n, width, queries.codes);
  const Partial next = pieces.partial(n, width), total = pieces.partial(n, width);
  for (int64_t p = unit.begin; p < unit.end; ++p) {
    if (unit.kept) {
      Pieces place{unit.kept + (p - unit.begin) * part};
      tile.attend(p, queries, pieces.next, place.partial(n, width));
    } else {
      tile.attend(p, queries, pieces.next, next);
      tile.add(p, next, total);
    }
  }
  if (!unit.kept) tile.finish(total);
}

// A tile that was divided among units: what they kept is merged in ascending order.
void merge_unit(const Call &c, const Unit &whole) {
  thread_local Floats memory;
  const HeadTile tile{c, *whole.rows, whole.head};
  const int64_t n = tile.queries(), width = tile.width(), part = Pieces::partial_floats(n, width);
  Pieces pieces{memory.at_least(part)}, kept{whole.kept};
  const Partial total = pieces.partial(n, width);
  for (int64_t p = whole.begin; p < whole.end; ++p) tile.add(p, kept.partial(n, width), total);
  tile.finish(total);
}

// A unit has at most an eighth of a thread's share, so that no thread waits long for another, but no less than a tile's partition.
// Neighbours share a KV head and differ in rows, so a head's pages stay in cache.
void attend_rows(const Call &c) {
  constexpr int64_t SHARES = 8;
  thread_local Floats memory;
  const AttentionPlan &plan = c.plan;
  const int64_t written = plan.written.size();
  pool().run(written + c.tiles.size(), [&](int64_t i) {
    if (i < written) write_rows(c, plan.written[i]);
    else prepare_queries(c, c.tiles[i - written]);
  });

  int64_t work = 0;
  for (const Rows &tile : c.tiles) work += plan.partitions(tile).count();
  const int64_t most = std::max(work * plan.shape.kv_heads / (SHARES * pool().threads()), int64_t{1});
  const auto kept_floats = [&](const Rows &tile) {
    return plan.partitions(tile).count() * Pieces::partial_floats(tile.count * c.group(), plan.shape.head_dim);
  };
  int64_t floats = 0;
  for (const Rows &tile : c.tiles) floats += plan.partitions(tile).count() > most ? plan.shape.kv_heads * kept_floats(tile) : 0;
  float *kept = memory.at_least(floats);
  std::vector<Unit> units, divided;
  for (int64_t head = 0; head < plan.shape.kv_heads; ++head) {
    for (const Rows &tile : c.tiles) {
      const Span all = plan.partitions(tile);
      if (all.count() <= most) {
        units.push_back({&tile, head, all.first, all.last, nullptr});
        continue;
      }
      const int64_t each = kept_floats(tile) / all.count();
      divided.push_back({&tile, head, all.first, all.last, kept});
      for (int64_t p = all.first; p < all.last; p += most) {
        units.push_back({&tile, head, p, std::min(p + most, all.last), kept + (p - all.first) * each});
      }
      kept += kept_floats(tile);
    }
  }
  pool().run(units.size(), [&](int64_t i) { attend_unit(c, units[i]); });
  pool().run(divided.size(), [&](int64_t i) { merge_unit(c, divided[i]); });
}

// Inputs: pages, q, k, v, rope and, with head norms, their two weights.
class Attend : public CpuPrimitive {
 public:
  Attend(mx::Stream stream, std::shared_ptr<const AttentionPlan> plan, bool head_norms)
      : CpuPrimitive(stream), plan_(std::move(plan)), head_norms_(head_norms) {}

  void eval_cpu(const Arrays &in, Arrays &out) override {
    const float *q_norm = head_norms_ ? in[5].data<float>() : nullptr, *k_norm = head_norms_ ? in[6].data<float>() : nullptr;
    AttentionCall call{*plan_, plan_->tiles, in[1].data<float>(), in[2].data<float>(), in[3].data<float>(), q_norm, k_norm,
                       const_cast<char *>(in[0].data<char>()), kv_format(in[0].dtype()), nullptr};
    auto &encoder = encoder_for(in, out);
    call.out = out[0].data<float>();
    encoder.dispatch([kept = plan_, call] { run_attention(call); });
  }
  const char *name() const override { return "PunaAttend"; }

 private:
  std::shared_ptr<const AttentionPlan> plan_;
  bool head_norms_;
};

void require(bool holds, const char *what) {
  if (!holds) throw std::invalid_argument(std::string("[attend] ") + what);
}

// Attention reads the memory in blocks of 4 KB here and there; with small pages of the system each costs a walk through its
// tables, which takes as long as half of the read.
void ask_for_huge_pages(void *memory, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t HUGE = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + HUGE - 1) / HUGE * HUGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / HUGE * HUGE;
  if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);  // a wish: it may be refused
#else
  static_cast<void>(memory), static_cast<void>(bytes);
#endif
}

}  // namespace

void run_attention(const AttentionCall &call) { attend_rows(Call{call}); }

int64_t page_elements(int64_t kv_heads, int64_t head_dim, mx::Dtype dtype) {
  const KV format = kv_format(dtype);
  return kv_heads * (key_bytes(format, head_dim) + value_bytes(format, head_dim)) / dtype.size();
}

// MLX puts a size before its memory, so that this never begins a cache line: half of all loads would take two. The pages lie
// somewhat further on in the memory, which lives as long as they do.
mx::array unwritten_pages(int64_t pages, int64_t elements, mx::Dtype dtype) {
  constexpr uintptr_t BEGIN = 4096;
  kv_format(dtype);
  const size_t page = static_cast<size_t>(elements) * dtype.size();
  const int64_t more = BEGIN / page + 1;
  const auto shape = [&](int64_t count) { return mx::Shape{static_cast<int>(count), static_cast<int>(elements)}; };
  mx::array memory(mx::allocator::malloc((pages + more) * page), shape(pages + more), dtype);
  const uintptr_t from = reinterpret_cast<uintptr_t>(memory.data<char>()), gap = (from + BEGIN - 1) / BEGIN * BEGIN - from;
  ask_for_huge_pages(memory.data<char>() + gap, pages * page);
  mx::array out(shape(pages), dtype, nullptr, {});
  out.copy_shared_buffer(memory, memory.strides(), memory.flags(), pages * elements, gap / dtype.size());
  out.set_status(mx::array::Status::available);
  return out;
}

AttentionPlan::AttentionPlan(AttentionShape s, float e, bool i, std::vector<int32_t> st, std::vector<int32_t> p,
                             std::vector<int32_t> t, int64_t w, const mx::array &r,
                             const std::vector<int32_t> &picks)
    : shape(s), eps(e), interleaved(i), starts(std::move(st)), past(std::move(p)), tables(std::move(t)), table_width(w), rope(r) {
  require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 && shape.head_dim > 0, "heads must be a multiple of kv_heads");
  require(starts.size() == past.size() + 1 && !past.empty(), "starts has one more entry than past");
  require(tables.size() == past.size() * static_cast<size_t>(table_width), "tables is (B, M)");
  require(rope.ndim() == 2 && rope.dtype() == mx::float32 && rope.shape(1) <= shape.head_dim, "rope is (positions, dims) float32");
  const int64_t tile = std::max(TILE_QUERIES / (shape.heads / shape.kv_heads), int64_t{1});
  for (size_t b = 0; b < past.size(); ++b) {
    require(starts[b] < starts[b + 1], "each sequence has rows");
    const int64_t sequence = b, begin = starts[b], end = starts[b + 1], positions = past[b] + end - begin;
    require(past[b] >= 0 && positions <= table_width * PAGE && positions <= rope.shape(0),
            "a sequence outgrows its pages or the rope table");
    for (int64_t row = begin; row < end; row += tile) tiles.push_back({sequence, row, std::min(tile, end - row), row});
    for (int64_t row = begin; row < end; row += written.back().count) {
      written.push_back({sequence, row, std::min(PAGE - (past[b] + row - begin) % PAGE, end - row), row});
    }
  }
  for (const int64_t row : picks) {
    require(row >= 0 && row < rows(), "a picked row is a row");
    const int64_t sequence = std::upper_bound(starts.begin(), starts.end(), row) - starts.begin() - 1;
    picked.push_back({sequence, row, 1, static_cast<int64_t>(picked.size())});
  }
}

void check_pages(const AttentionPlan &plan, const mx::array &pages) {
  const int64_t elements = page_elements(plan.shape.kv_heads, plan.shape.head_dim, pages.dtype());
  require(pages.ndim() == 2 && pages.shape(1) == elements, "pages is (pages, page_elements)");
  for (int32_t page : plan.tables) require(page >= 0 && page < pages.shape(0), "a page lies outside of the pool");
}

mx::array attend(std::shared_ptr<const AttentionPlan> plan, const mx::array &pages, const mx::array &q, const mx::array &k,
                 const mx::array &v, const std::optional<mx::array> &q_norm, const std::optional<mx::array> &k_norm) {
  const AttentionShape &s = plan->shape;
  const int rows = static_cast<int>(plan->rows());
  const mx::Shape wide{rows, static_cast<int>(s.heads * s.head_dim)}, narrow{rows, static_cast<int>(s.kv_heads * s.head_dim)};
  require(q.shape() == wide && k.shape() == narrow && v.shape() == narrow, "wants q (T, H * Dh), k and v (T, K * Dh)");
  require(q_norm.has_value() == k_norm.has_value(), "norms both q and k or neither");
  check_pages(*plan, pages);
  Arrays in{pages, plain(q), plain(k), plain(v), plan->rope};
  if (q_norm) in.insert(in.end(), {plain(*q_norm), plain(*k_norm)});
  return mx::array(wide, mx::float32, std::make_shared<Attend>(cpu_stream(), std::move(plan), q_norm.has_value()), std::move(in));
}

}  // namespace puna
