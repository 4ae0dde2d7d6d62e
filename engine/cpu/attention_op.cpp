// Writing keys and values, then attention of each row and KV head over partitions in ascending order.
#include "attention_op.h"

#include <cstring>

#include "kernels.h"
#include "lanes.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"
#include "pool.h"
#include "row_ops.h"

namespace puna {
namespace {

KV kv_format(mx::Dtype dtype) {
  if (dtype == mx::float32) return KV::f32;
  if (dtype == mx::float16) return KV::f16;
  if (dtype == mx::bfloat16) return KV::bf16;
  throw std::invalid_argument("[attend] pages must be float32, float16 or bfloat16");
}

// Raw pointers of one call. A page is keys (K, Dh, PAGE), then values (K, PAGE, Dh).
struct Call {
  const AttentionPlan &plan;
  const float *q, *k, *v, *q_norm, *k_norm, *rope;
  char *pages;
  KV format;
  float *out;

  int64_t element() const { return format == KV::f32 ? 4 : 2; }
  int64_t head_page() const { return plan.shape.head_dim * PAGE; }
  char *page(int64_t sequence, int64_t index) const {
    const int64_t id = plan.tables[sequence * plan.table_width + index];
    return pages + id * page_elements(plan.shape.kv_heads, plan.shape.head_dim) * element();
  }
  char *keys(char *page, int64_t head) const { return page + head * head_page() * element(); }
  char *values(char *page, int64_t head) const { return page + (plan.shape.kv_heads + head) * head_page() * element(); }
};

// Plain products and sums, which every compiler rounds alike.
void turn(const AttentionPlan &plan, const float *rope, int64_t position, float *x) {
  const int64_t half = plan.rope.shape(1) / 2, step = plan.interleaved ? 2 : 1, other = plan.interleaved ? 1 : half;
  const float *cosines = rope + position * 2 * half, *sines = cosines + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i * step], b = x[i * step + other];
    x[i * step] = a * cosines[i] - b * sines[i];
    x[i * step + other] = b * cosines[i] + a * sines[i];
  }
}

// A head of q or k as attention wants it: normed where the model norms heads, turned by rope.
void prepare(const Call &c, const float *from, const float *norm, int64_t position, float *to) {
  const int64_t width = c.plan.shape.head_dim;
  if (norm) kernels().rows->norm(from, norm, c.plan.eps, width, to);
  else std::memcpy(to, from, width * sizeof(float));
  turn(c.plan, c.rope, position, to);
}

void write_row(const Call &c, int64_t row) {
  const AttentionShape &s = c.plan.shape;
  const int64_t position = c.plan.position(row), from = row * s.kv_heads * s.head_dim;
  char *page = c.page(c.plan.sequence_of[row], position / PAGE);
  std::vector<float> key(s.head_dim);
  for (int64_t h = 0; h < s.kv_heads; ++h) {
    prepare(c, c.k + from + h * s.head_dim, c.k_norm, position, key.data());
    kernels().attention->write(key.data(), c.v + from + h * s.head_dim, s.head_dim, position % PAGE, c.format, c.keys(page, h),
                               c.values(page, h));
  }
}

// What the partitions so far add up to, for the G query heads of one KV head.
struct Running {
  std::vector<float> maxima, sums, totals;  // (G,), (G,), (G, Dh)

  void merge(const std::vector<float> &maxima_in, const std::vector<float> &sums_in, const std::vector<float> &out, int64_t width) {
    for (size_t g = 0; g < maxima.size(); ++g) {
      const float highest = maxima_in[g] > maxima[g] ? maxima_in[g] : maxima[g];
      const float old = exp_lane(maxima[g] - highest), fresh = exp_lane(maxima_in[g] - highest);
      sums[g] = sums[g] * old + sums_in[g] * fresh;
      for (int64_t d = g * width; d < int64_t(g + 1) * width; ++d) totals[d] = totals[d] * old + out[d] * fresh;
      maxima[g] = highest;
    }
  }
};

void attend_row(const Call &c, int64_t row, int64_t head) {
  const AttentionShape &s = c.plan.shape;
  const int64_t group = s.heads / s.kv_heads, width = s.head_dim, sequence = c.plan.sequence_of[row];
  const int64_t last = c.plan.position(row) + 1, first = s.window && last > s.window ? last - s.window : 0;
  const int64_t at = (row * s.heads + head * group) * width;
  std::vector<float> queries(group * width), maxima(group), sums(group), out(group * width);
  for (int64_t g = 0; g < group; ++g) {
    float *query = queries.data() + g * width;
    prepare(c, c.q + at + g * width, c.q_norm, last - 1, query);
    for (int64_t d = 0; d < width; ++d) query[d] *= s.scale;
  }
  Running running;
  for (int64_t start = first / PARTITION * PARTITION; start < last; start += PARTITION) {
    const void *keys[PARTITION / PAGE] = {}, *values[PARTITION / PAGE] = {};
    for (int64_t t = std::max(first, start) / PAGE; t * PAGE < std::min(last, start + PARTITION); ++t) {
      char *page = c.page(sequence, t);
      keys[t - start / PAGE] = c.keys(page, head);
      values[t - start / PAGE] = c.values(page, head);
    }
    kernels().attention->partition(queries.data(), group, width, keys, values, c.format, std::max(first - start, int64_t{0}),
                                   std::min(last - start, PARTITION), maxima.data(), sums.data(), out.data());
    if (running.sums.empty()) running = {maxima, sums, out};
    else running.merge(maxima, sums, out, width);
  }
  for (int64_t g = 0; g < group; ++g) {
    for (int64_t d = 0; d < width; ++d) c.out[at + g * width + d] = running.totals[g * width + d] / running.sums[g];
  }
}

void run(const Call &c) {
  constexpr int64_t ROWS_PER_UNIT = 8;
  const int64_t rows = c.plan.rows(), heads = c.plan.shape.kv_heads;
  pool().run((rows + ROWS_PER_UNIT - 1) / ROWS_PER_UNIT, [&](int64_t unit) {
    for (int64_t r = unit * ROWS_PER_UNIT; r < std::min(rows, (unit + 1) * ROWS_PER_UNIT); ++r) write_row(c, r);
  });
  // Neighbouring units share a KV head and differ in rows, so a head's pages stay in cache.
  pool().run(rows * heads, [&](int64_t unit) { attend_row(c, unit % rows, unit / rows); });
}

class Attend : public mx::UnaryPrimitive {
 public:
  Attend(mx::Stream stream, std::shared_ptr<const AttentionPlan> plan, bool head_norms)
      : mx::UnaryPrimitive(stream), plan_(std::move(plan)), head_norms_(head_norms) {}

  // Inputs: pages, q, k, v, rope and, with head norms, their two weights.
  void eval_cpu(const std::vector<mx::array> &in, mx::array &out) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    auto &encoder = mx::cpu::get_command_encoder(stream());
    for (const auto &array : in) encoder.set_input_array(array);
    encoder.set_output_array(out);
    const float *q_norm = head_norms_ ? in[5].data<float>() : nullptr, *k_norm = head_norms_ ? in[6].data<float>() : nullptr;
    encoder.dispatch([plan = plan_, pages = const_cast<char *>(in[0].data<char>()), format = kv_format(in[0].dtype()),
                      q = in[1].data<float>(), k = in[2].data<float>(), v = in[3].data<float>(), rope = in[4].data<float>(),
                      q_norm, k_norm, y = out.data<float>()] { run(Call{*plan, q, k, v, q_norm, k_norm, rope, pages, format, y}); });
  }
  void eval_gpu(const std::vector<mx::array> &, mx::array &) override { throw std::runtime_error("[attend] is a CPU operation"); }
  const char *name() const override { return "PunaAttend"; }

 private:
  std::shared_ptr<const AttentionPlan> plan_;
  bool head_norms_;
};

void require(bool holds, const char *what) {
  if (!holds) throw std::invalid_argument(std::string("[attend] ") + what);
}

}  // namespace

int64_t page_elements(int64_t kv_heads, int64_t head_dim) { return 2 * kv_heads * head_dim * PAGE; }

mx::array unwritten_pages(int64_t pages, int64_t elements, mx::Dtype dtype) {
  kv_format(dtype);
  auto memory = mx::allocator::malloc(static_cast<size_t>(pages * elements) * dtype.size());
  return mx::array(std::move(memory), {static_cast<int>(pages), static_cast<int>(elements)}, dtype);
}

AttentionPlan::AttentionPlan(AttentionShape s, float e, bool i, std::vector<int32_t> st, std::vector<int32_t> p,
                             std::vector<int32_t> t, int64_t w, const mx::array &r)
    : shape(s), eps(e), interleaved(i), starts(std::move(st)), past(std::move(p)), tables(std::move(t)), table_width(w), rope(r) {
  require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 && shape.head_dim > 0, "heads must be a multiple of kv_heads");
  require(starts.size() == past.size() + 1 && !past.empty(), "starts has one more entry than past");
  require(tables.size() == past.size() * static_cast<size_t>(table_width), "tables is (B, M)");
  require(rope.ndim() == 2 && rope.dtype() == mx::float32 && rope.shape(1) <= shape.head_dim, "rope is (positions, dims) float32");
  sequence_of.resize(starts.back());
  for (size_t b = 0; b < past.size(); ++b) {
    require(starts[b] < starts[b + 1], "each sequence has rows");
    const int64_t end = past[b] + starts[b + 1] - starts[b];
    require(end <= table_width * PAGE && end <= rope.shape(0), "a sequence outgrows its pages or the rope table");
    for (int32_t row = starts[b]; row < starts[b + 1]; ++row) sequence_of[row] = static_cast<int32_t>(b);
  }
}

mx::array attend(std::shared_ptr<const AttentionPlan> plan, const mx::array &pages, const mx::array &q, const mx::array &k,
                 const mx::array &v, const std::optional<mx::array> &q_norm, const std::optional<mx::array> &k_norm) {
  const AttentionShape &s = plan->shape;
  const int rows = static_cast<int>(plan->rows());
  const mx::Shape wide{rows, static_cast<int>(s.heads * s.head_dim)}, narrow{rows, static_cast<int>(s.kv_heads * s.head_dim)};
  require(q.shape() == wide && k.shape() == narrow && v.shape() == narrow, "wants q (T, H * Dh), k and v (T, K * Dh)");
  require(pages.ndim() == 2 && pages.shape(1) == page_elements(s.kv_heads, s.head_dim), "pages is (pages, page_elements)");
  require(q_norm.has_value() == k_norm.has_value(), "norms both q and k or neither");
  kv_format(pages.dtype());
  for (int32_t page : plan->tables) require(page >= 0 && page < pages.shape(0), "a page lies outside of the pool");
  const mx::Stream stream = cpu_stream();
  const auto plain = [&](const mx::array &a) { return mx::contiguous(mx::astype(a, mx::float32, stream), false, stream); };
  std::vector<mx::array> in{pages, plain(q), plain(k), plain(v), plan->rope};
  if (q_norm) in.insert(in.end(), {plain(*q_norm), plain(*k_norm)});
  return mx::array(wide, mx::float32, std::make_shared<Attend>(stream, std::move(plan), q_norm.has_value()), std::move(in));
}

}  // namespace puna
