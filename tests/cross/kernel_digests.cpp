// A program: runs every kernel of one row on pseudo-random inputs and prints a digest for each case. Equal rows print the
// same. A NaN counts as a NaN, whatever its sign and payload: in those the instruction sets of x86 and ARM differ.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "attention.h"
#include "kv_codes.h"
#include "matmul.h"
#include "rows.h"

namespace {

using namespace puna;

struct Row {
  const char *name;
  const MatmulKernels *matmul;
  const RowKernels *rows;
  const AttentionKernels *attention;
};
constexpr Row ROWS[] = {
#if defined(__aarch64__)
    {"neon_dotprod", &neon_dotprod_matmul, &neon_rows, &neon_attention},
    {"neon_i8mm", &neon_i8mm_matmul, &neon_rows, &neon_attention},
#else
    {"portable", &portable_matmul, &portable_rows, &portable_attention},
#endif
};

// The same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint32_t bits() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 32);
  }
  int64_t below(int64_t n) { return bits() % n; }
  float within(float magnitude) { return (static_cast<float>(bits() >> 8) * 0x1p-23f - 1.0f) * magnitude; }
  // Mostly ordinary; one in 16 is what breaks things.
  float extreme() {
    constexpr float AWKWARD[] = {0.0f, -0.0f, 1e-41f, -1e-38f, 3e38f, -3e38f, 88.5f, -87.5f, 1e-20f, 0.5f,
                                 std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                                 std::numeric_limits<float>::quiet_NaN()};
    return below(16) ? within(4.0f) : AWKWARD[below(std::size(AWKWARD))];
  }

 private:
  uint64_t state_;
};

class Digest {
 public:
  void add(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) add(std::isnan(x[i]) ? 0x7FC00000 : std::bit_cast<uint32_t>(x[i]));
  }
  void add(const void *bytes, int64_t n) {
    for (int64_t i = 0; i < n; ++i) add(static_cast<const uint8_t *>(bytes)[i]);
  }
  uint64_t value() const { return value_; }

 private:
  void add(uint32_t word) { value_ = (value_ ^ word) * 0x100000001B3u; }
  uint64_t value_ = 0xCBF29CE484222325u;
};

// Memory that starts as zeros, on a line of the cache.
template <class T>
class Array {
 public:
  explicit Array(int64_t n) : size(n), data_(static_cast<T *>(std::aligned_alloc(64, (n * sizeof(T) + 127) / 64 * 64))) {
    std::memset(static_cast<void *>(data_), 0, n * sizeof(T));
  }
  ~Array() { std::free(data_); }
  Array(const Array &) = delete;
  Array &operator=(const Array &) = delete;
  T *at(int64_t i) { return data_ + i; }
  T &operator[](int64_t i) { return data_[i]; }
  const int64_t size;

 private:
  T *data_;
};

// A number of a panel; `awkward` ones may be infinite, no number, or denormal.
void write_number(Random &random, Number number, uint8_t *at, bool awkward) {
  const uint32_t bits = std::bit_cast<uint32_t>(random.within(0.01f));
  const uint32_t any = random.bits(), small = number == Number::f16 ? any & 0x9FFF : bits >> 16;
  const uint16_t half = static_cast<uint16_t>(awkward ? any : small);
  if (number == Number::f32) {
    const float value = awkward ? random.extreme() : std::bit_cast<float>(bits);
    std::memcpy(at, &value, 4);
  } else {
    std::memcpy(at, &half, 2);
  }
}

// Random codes and sub-scales, and numbers for everything that is one.
void fill_panels(Random &random, const PanelKind &kind, int64_t group, int64_t superblocks, int64_t panels, uint8_t *data) {
  const Layout at = layout(kind, group);
  const int64_t width = bytes_of(kind.number);
  const int64_t numbers = kind.arithmetic == Arithmetic::dense       ? SUPERBLOCK * COLUMNS
                          : kind.arithmetic == Arithmetic::subscaled ? 2 * COLUMNS
                                                                     : at.codes / width;
  for (int64_t b = 0; b < superblocks * panels; ++b) {
    uint8_t *block = data + b * at.bytes;
    for (int64_t i = 0; i < at.bytes; ++i) block[i] = static_cast<uint8_t>(random.bits());
    const bool awkward = b == superblocks * panels - 2;
    for (int64_t i = 0; i < numbers; ++i) write_number(random, kind.number, block + i * width, awkward);
  }
}

constexpr int64_t TALLEST = STRIP_ROWS, COLS = 5 * COLUMNS + 7, OUT_STRIDE = COLS + 5, K_BLOCKS = 2;

// Rows of several sizes; row 3 is awkward, and row 5 holds what is no finite number, which spoils the whole of it.
void fill_rows(Random &random, int64_t cols, Array<float> &x) {
  for (int64_t r = 0; r < TALLEST; ++r) {
    const float magnitude = std::ldexp(1.0f, static_cast<int>(random.below(20)) - 10);
    for (int64_t k = 0; k < cols; ++k) {
      const float awkward = random.extreme();
      x[r * cols + k] = r == 5 || (r == 3 && std::isfinite(awkward)) ? awkward : random.within(magnitude);
    }
    if (r % 3 == 1) std::memset(x.at(r * cols + 30), 0, 300 * sizeof(float));
    if (r == 2) std::fill_n(x.at(r * cols), 40, 1e-41f);
  }
}

void strips_of(const Row &row, size_t kind_index) {
  const PanelKind &kind = KINDS[kind_index];
  const size_t form = static_cast<size_t>(kind.arithmetic);
  const int64_t group = kind.arithmetic != Arithmetic::grouped ? 0 : kind.mins ? GROUP << kind_index % 3 : GROUP;
  const int64_t panels = (COLS + COLUMNS - 1) / COLUMNS, panel_bytes = K_BLOCKS * layout(kind, group).bytes;
  const int64_t cols = K_BLOCKS * SUPERBLOCK - 19, stride = K_BLOCKS * acts_bytes(kind.arithmetic);
  Random random(kind_index + 1);
  Array<uint8_t> weights(panels * panel_bytes), acts(TALLEST * stride);
  Array<float> x(TALLEST * cols), bias(COLS), residual(TALLEST * OUT_STRIDE), out(TALLEST * OUT_STRIDE);
  fill_panels(random, kind, group, K_BLOCKS, panels, weights.at(0));
  fill_rows(random, cols, x);
  for (int64_t i = 0; i < COLS; ++i) bias[i] = random.within(1.0f);
  for (int64_t i = 0; i < residual.size; ++i) residual[i] = random.within(1.0f);
  for (int64_t r = 0; r < TALLEST; ++r) row.matmul->prepare[form](x.at(r * cols), cols, acts.at(r * stride));
  Digest prepared;
  prepared.add(acts.at(0), acts.size);
  std::printf("prepare %zu %016llx\n", kind_index, static_cast<unsigned long long>(prepared.value()));
  for (int64_t rows = 1; rows <= TALLEST; ++rows) {
    Digest digest;
    std::fill_n(out.at(0), out.size, 7.0f);
    row.matmul->strips[kind_index](Strip{.panels = weights.at(0), .panel_bytes = panel_bytes, .superblocks = K_BLOCKS,
                                         .group = group, .columns = COLS, .acts = acts.at(0),
                                         .acts_stride = stride, .rows = rows, .out = out.at(0), .out_stride = OUT_STRIDE,
                                         .bias = rows % 2 ? bias.at(0) : nullptr,
                                         .residual = rows % 4 > 1 ? residual.at(0) : nullptr});
    digest.add(out.at(0), out.size);
    std::printf("strip kind %zu rows %lld %016llx\n", kind_index, static_cast<long long>(rows),
                static_cast<unsigned long long>(digest.value()));
  }
}

void rows_of(const Row &row, int64_t n) {
  Random random(n);
  Array<float> x(n), y(n), out(n + 1);
  for (const bool awkward : {false, true}) {
    for (int64_t i = 0; i < n; ++i) {
      x[i] = awkward ? random.extreme() : random.within(3.0f);
      y[i] = random.within(2.0f);
    }
    Digest norm, gate;
    row.rows->norm(x.at(0), y.at(0), 1e-5f, n, out.at(0));
    norm.add(out.at(0), n + 1);
    row.rows->gate(x.at(0), y.at(0), n, out.at(0));
    gate.add(out.at(0), n + 1);
    std::printf("norm %lld %d %016llx\ngate %lld %d %016llx\n", static_cast<long long>(n), awkward,
                static_cast<unsigned long long>(norm.value()), static_cast<long long>(n), awkward,
                static_cast<unsigned long long>(gate.value()));
  }
}

// Of logits' weights not the bits but the values are law: sums of strips within so much of themselves.
constexpr double WEIGHT_ERROR = 1e-12;

template <class Real>
bool weighs(void (*weigh)(const Real *, const Weighing &, int64_t, double *), int64_t n, double temperature, double least) {
  constexpr int64_t STRIP = 100;
  Random random(n);
  Array<Real> logits(n);
  for (int64_t i = 0; i < n; ++i) {
    logits[i] = random.below(8) ? random.within(20.0f) : -std::numeric_limits<Real>::infinity();
  }
  const Weighing weighing{20.0, temperature, least, STRIP};
  Array<double> sums((n + STRIP - 1) / STRIP);
  weigh(logits.at(0), weighing, n, sums.at(0));
  for (int64_t first = 0; first < n; first += STRIP) {
    double wanted = 0;
    for (int64_t i = first; i < std::min(n, first + STRIP); ++i) {
      const double exponent = (static_cast<double>(logits[i]) - 20.0) / temperature;
      if (exponent >= std::max(least, -708.0)) wanted += std::exp(exponent);
    }
    const double error = std::abs(sums[first / STRIP] - wanted);
    if (!(error <= WEIGHT_ERROR * wanted)) return false;
  }
  return true;
}

bool weights_of(const Row &row, int64_t n) {
  for (const double temperature : {0.1, 0.8, 3.0})
    for (const double least : {-std::numeric_limits<double>::infinity(), -4.0}) {
      if (!weighs(row.rows->weigh32, n, temperature, least) || !weighs(row.rows->weigh64, n, temperature, least)) {
        std::fprintf(stderr, "weights of %lld at %g cut at %g are wrong\n", static_cast<long long>(n), temperature, least);
        return false;
      }
    }
  return true;
}

// The exponential at every 2^12th float, by way of a gate of 1: silu(x) = x / (1 + exp(-x)).
void exponential_of(const Row &row) {
  constexpr int64_t N = 1 << 20, AT_ONCE = 1 << 12;
  Array<float> x(AT_ONCE), one(AT_ONCE), out(AT_ONCE);
  std::fill_n(one.at(0), AT_ONCE, 1.0f);
  Digest digest;
  for (int64_t first = 0; first < N; first += AT_ONCE) {
    for (int64_t i = 0; i < AT_ONCE; ++i) x[i] = std::bit_cast<float>(static_cast<uint32_t>((first + i) << 12 | 0x5A5));
    row.rows->gate(x.at(0), one.at(0), AT_ONCE, out.at(0));
    digest.add(out.at(0), AT_ONCE);
  }
  std::printf("exponential %016llx\n", static_cast<unsigned long long>(digest.value()));
}

// Partials of n queries.
struct Sums {
  Array<float> maxima, sums, out;

  Sums(int64_t n, int64_t head_dim) : maxima(n), sums(n), out(n * head_dim) {}
  Partial partial() { return {maxima.at(0), sums.at(0), out.at(0)}; }
  void add_to(Digest &digest) {
    for (int64_t i = 0; i < maxima.size; ++i) maxima[i] += 0.0f;  // of two zeros either may be the higher
    digest.add(maxima.at(0), maxima.size);
    digest.add(sums.at(0), sums.size);
    digest.add(out.at(0), out.size);
  }
};

// A partition's pages as `write` makes them, `tokens` of it; what was not written is no number.
struct Pages {
  static constexpr int64_t COUNT = PARTITION / PAGE;
  const int64_t key_size, value_size;
  Array<uint8_t> keys, values;
  const void *key_pages[COUNT], *value_pages[COUNT];

  Pages(const Row &row, Random &random, KV format, int64_t head_dim, int64_t tokens, bool awkward)
      : key_size(key_bytes(format, head_dim)), value_size(value_bytes(format, head_dim)), keys(COUNT * key_size),
        values(COUNT * value_size) {
    std::memset(keys.at(0), 0xFF, keys.size);
    std::memset(values.at(0), 0xFF, values.size);
    for (int64_t i = 0; i < COUNT; ++i) key_pages[i] = keys.at(i * key_size), value_pages[i] = values.at(i * value_size);
    const int64_t stride = head_dim + 3;
    Array<float> k(PAGE * head_dim), v(PAGE * stride);
    for (int64_t token = 0; token < tokens;) {
      const int64_t slot = token % PAGE, most = std::min(PAGE - slot, tokens - token), count = 1 + random.below(most);
      for (int64_t i = 0; i < k.size; ++i) k[i] = awkward ? random.extreme() : random.within(2.0f);
      for (int64_t i = 0; i < v.size; ++i) v[i] = awkward ? random.extreme() : random.within(2.0f);
      row.attention->write(k.at(0), v.at(0), stride, count, head_dim, slot, format, keys.at(token / PAGE * key_size),
                           values.at(token / PAGE * value_size));
      token += count;
    }
  }
};

struct Shape {
  int64_t head_dim, group, rows, tokens, window;  // no window: 0
};
constexpr Shape SHAPES[] = {{64, 1, 1, 256, 0},  {64, 4, 1, 77, 0},    {64, 4, 16, 256, 0}, {128, 3, 5, 133, 40},
                            {80, 7, 3, 256, 33}, {128, 8, 8, 100, 16}, {96, 2, 31, 31, 0},  {18, 5, 2, 65, 1}};

void attention_of(const Row &row, const Shape &shape, KV format, bool awkward) {
  const auto [head_dim, group, rows, tokens, window] = shape;
  Random random(tokens * 8 + static_cast<int>(format) * 2 + awkward);
  Pages pages(row, random, format, head_dim, tokens, awkward);
  Digest written, partition, merged;
  written.add(pages.keys.at(0), pages.keys.size);
  written.add(pages.values.at(0), pages.values.size);
  const int64_t n = rows * group;
  const int64_t groups = kv_groups(head_dim), dims = groups * KV_GROUP;
  Array<float> queries(n * head_dim), scratch(attention_scratch(n, head_dim)), scales(n);
  Array<int16_t> whole(n * dims);
  Array<int8_t> high(n * dims), low(n * dims);
  Array<int32_t> sums_of_codes(n * groups);
  const QueryCodes codes{dims, whole.at(0), high.at(0), low.at(0), sums_of_codes.at(0), scales.at(0)};
  Array<int32_t> first(rows), last(rows);
  for (int64_t i = 0; i < queries.size; ++i) queries[i] = random.within(0.5f);
  code_queries(queries.at(0), n, head_dim, codes);
  for (int64_t r = 0; r < rows; ++r) {
    last[r] = static_cast<int32_t>(tokens - rows + r + 1);
    first[r] = window && last[r] > window ? last[r] - static_cast<int32_t>(window) : 0;
  }
  for (int64_t i = 0; i < first[0] / PAGE; ++i) pages.key_pages[i] = pages.value_pages[i] = nullptr;
  for (int64_t i = (tokens + PAGE - 1) / PAGE; i < Pages::COUNT; ++i) pages.key_pages[i] = pages.value_pages[i] = nullptr;
  Sums sums(n, head_dim), total(n, head_dim);
  row.attention->partition(AttentionTile{.rows = rows, .group = group, .head_dim = head_dim, .queries = queries.at(0), .codes = &codes,
                                         .first = first.at(0), .last = last.at(0), .format = format, .keys = pages.key_pages,
                                         .values = pages.value_pages, .next = nullptr, .scratch = scratch.at(0)},
                           sums.partial());
  sums.add_to(partition);
  for (int64_t i = 0; i < n; ++i) total.maxima[i] = random.within(20.0f), total.sums[i] = 1 + random.within(0.5f);
  for (int64_t i = 0; i < n * head_dim; ++i) total.out[i] = random.within(9.0f);
  row.attention->merge(n, head_dim, sums.partial(), total.partial());
  total.add_to(merged);
  const auto print = [&](const char *what, const Digest &digest) {
    std::printf("%s format %d Dh %lld group %lld rows %lld awkward %d %016llx\n", what, static_cast<int>(format),
                static_cast<long long>(head_dim), static_cast<long long>(group), static_cast<long long>(rows), awkward,
                static_cast<unsigned long long>(digest.value()));
  };
  print("write", written), print("partition", partition), print("merge", merged);
}

}  // namespace

int main(int count, char **words) {
  for (const Row &row : ROWS) {
    if (count != 2 || std::strcmp(words[1], row.name) != 0) continue;
    for (size_t kind = 0; kind < KIND_COUNT; ++kind) strips_of(row, kind);
    for (const int64_t n : {1, 15, 16, 17, 40, 257, 2048}) rows_of(row, n);
    for (const int64_t n : {1, 31, 32, 33, 100, 101, 1000})
      if (!weights_of(row, n)) return 1;
    exponential_of(row);
    for (const Shape &shape : SHAPES)
      for (const KV format : {KV::f32, KV::f16, KV::bf16, KV::q8, KV::q4})
        for (const bool awkward : {false, true}) attention_of(row, shape, format, awkward);
    return 0;
  }
  std::fprintf(stderr, "give the name of a row of kernels\n");
  return 1;
}
