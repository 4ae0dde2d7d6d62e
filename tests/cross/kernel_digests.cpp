// A program: runs every kernel of one row on pseudo-random inputs and prints a digest for each case. Equal rows print the
// same. A NaN counts as a NaN, whatever its sign and payload: in those the instruction sets of x86 and ARM differ.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "matmul.h"
#include "rows.h"

namespace {

using namespace puna;

struct Row {
  const char *name;
  const MatmulKernels *matmul;
  const RowKernels *rows;
};
constexpr Row ROWS[] = {
#if defined(__aarch64__)
    {"neon_dotprod", &neon_dotprod_matmul, &neon_rows},
    {"neon_i8mm", &neon_i8mm_matmul, &neon_rows},
#else
    {"portable", &portable_matmul, &portable_rows},
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
  const uint16_t half = static_cast<uint16_t>(awkward ? random.bits() : number == Number::f16 ? (random.bits() & 0x9FFF) : bits >> 16);
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

// Rows of several sizes, the last of which is awkward.
void fill_rows(Random &random, int64_t cols, Array<float> &x) {
  for (int64_t r = 0; r < TALLEST; ++r) {
    const float magnitude = std::ldexp(1.0f, static_cast<int>(random.below(20)) - 10);
    for (int64_t k = 0; k < cols; ++k) x[r * cols + k] = r == TALLEST - 1 ? random.extreme() : random.within(magnitude);
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
    // The last rows, so that the awkward one is always among them.
    const int64_t first = TALLEST - rows;
    std::fill_n(out.at(0), out.size, 7.0f);
    row.matmul->strips[kind_index](Strip{.panels = weights.at(0), .panel_bytes = panel_bytes, .superblocks = K_BLOCKS,
                                         .group = group, .columns = COLS, .acts = acts.at(first * stride),
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

}  // namespace

int main(int count, char **words) {
  for (const Row &row : ROWS) {
    if (count != 2 || std::strcmp(words[1], row.name) != 0) continue;
    for (size_t kind = 0; kind < KIND_COUNT; ++kind) strips_of(row, kind);
    for (const int64_t n : {1, 15, 16, 17, 40, 257, 2048}) rows_of(row, n);
    exponential_of(row);
    return 0;
  }
  std::fprintf(stderr, "give the name of a row of kernels\n");
  return 1;
}
