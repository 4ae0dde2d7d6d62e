// A program: the strips of AVX-VNNI against the portable ones, bit for bit. Where the CPU lacks AVX-VNNI its two instructions trap,
// and are done here in plain C++: what runs is the very code that the product has, only slower.
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "matmul.h"

namespace {

using namespace puna;

long trapped = 0;
unsigned high_halves = 0;  // where the upper halves of ymm registers lie in what a signal handler is given

struct Register {
  uint8_t bytes[32];
};

Register get(const uint8_t *state, int i) {
  Register r;
  std::memcpy(r.bytes, state + 160 + 16 * i, 16);
  std::memcpy(r.bytes + 16, state + high_halves + 16 * i, 16);
  return r;
}

void put(uint8_t *state, int i, const Register &r) {
  std::memcpy(state + 160 + 16 * i, r.bytes, 16);
  std::memcpy(state + high_halves + 16 * i, r.bytes + 16, 16);
}

// vpdpbusd: unsigned bytes of `a` times signed ones of `b`; vpdpwssd: signed words. Added to the dwords of `sum`.
Register dot(Register sum, const Register &a, const Register &b, bool words) {
  for (int i = 0; i < 8; ++i) {
    uint32_t total;
    std::memcpy(&total, sum.bytes + 4 * i, 4);
    for (int j = 0; j < (words ? 2 : 4); ++j) {
      int16_t x = a.bytes[4 * i + j], y = static_cast<int8_t>(b.bytes[4 * i + j]);
      if (words) std::memcpy(&x, a.bytes + 4 * i + 2 * j, 2), std::memcpy(&y, b.bytes + 4 * i + 2 * j, 2);
      total += static_cast<uint32_t>(x * y);
    }
    std::memcpy(sum.bytes + 4 * i, &total, 4);
  }
  return sum;
}

// VEX.256.66.0F38.W0 50 or 52 with three registers: C4, then R X B inverted over the map, then W, vvvv inverted, L, pp.
void on_unknown_instruction(int, siginfo_t *, void *context) {
  auto &machine = static_cast<ucontext_t *>(context)->uc_mcontext;
  const auto *code = reinterpret_cast<const uint8_t *>(machine.gregs[REG_RIP]);
  const bool known = code[0] == 0xC4 && (code[1] & 31) == 2 && (code[2] & 0x87) == 5 && (code[3] & 0xFD) == 0x50 && code[4] >= 0xC0;
  if (!known) std::abort();
  const int to = (code[4] >> 3 & 7) + (code[1] & 0x80 ? 0 : 8), b = (code[4] & 7) + (code[1] & 0x20 ? 0 : 8);
  const int a = 15 - (code[2] >> 3 & 15);
  auto *state = reinterpret_cast<uint8_t *>(machine.fpregs);
  put(state, to, dot(get(state, to), get(state, a), get(state, b), code[3] == 0x52));
  machine.gregs[REG_RIP] += 5;
  ++trapped;
}

void trap() {
  unsigned a, c, d;
  __cpuid_count(0xD, 2, a, high_halves, c, d);
  struct sigaction action = {};
  action.sa_sigaction = on_unknown_instruction;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

std::mt19937 random_bits(1);

void fill(uint8_t *p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i) p[i] = static_cast<uint8_t>(random_bits());
}

// Numbers near 1 of either sign.
void fill(uint8_t *p, int64_t bytes, Number number) {
  for (int64_t i = 0; i < bytes; i += bytes_of(number)) {
    const uint32_t bits = random_bits();
    const uint32_t half = number == Number::f16 ? (bits & 0x83FF) | 0x3800 : (bits & 0x807F) | 0x3F00;
    const uint32_t value = number == Number::f32 ? (bits & 0x807FFFFF) | 0x3F000000 : half;
    std::memcpy(p + i, &value, bytes_of(number));
  }
}

constexpr int64_t K = 512, WIDTH = 27, SUPERBLOCKS = K / SUPERBLOCK;

struct Buffer {
  uint8_t *bytes;
  explicit Buffer(int64_t size) : bytes(static_cast<uint8_t *>(std::aligned_alloc(64, (size + 8191) / 64 * 64))) {}
  ~Buffer() { std::free(bytes); }
};

std::vector<float> outputs(const MatmulKernels &kernels, size_t kind, int64_t group, const uint8_t *panels, int64_t rows) {
  const size_t form = static_cast<size_t>(KINDS[kind].arithmetic);
  const int64_t stride = SUPERBLOCKS * acts_bytes(KINDS[kind].arithmetic);
  std::mt19937 bits(2);
  std::normal_distribution<float> normal;
  Buffer acts(rows * stride);
  for (int64_t r = 0; r < rows; ++r) {
    float x[K];
    for (float &value : x) value = normal(bits);
    kernels.prepare[form](x, K, acts.bytes + r * stride);
  }
  std::vector<float> out(rows * WIDTH, 0.5f);
  kernels.strips[kind](Strip{.panels = panels, .panel_bytes = SUPERBLOCKS * layout(KINDS[kind], group).bytes,
                             .superblocks = SUPERBLOCKS, .group = group, .columns = WIDTH, .acts = acts.bytes,
                             .acts_stride = stride, .rows = rows, .out = out.data(), .out_stride = WIDTH, .bias = nullptr,
                             .residual = out.data()});
  return out;
}

bool equal(size_t kind, int64_t group) {
  const Layout at = layout(KINDS[kind], group);
  const bool dense = KINDS[kind].arithmetic == Arithmetic::dense, subscaled = KINDS[kind].arithmetic == Arithmetic::subscaled;
  Buffer panels(2 * SUPERBLOCKS * at.bytes);
  for (int64_t b = 0; b < 2 * SUPERBLOCKS; ++b) {
    uint8_t *block = panels.bytes + b * at.bytes;
    fill(block, at.bytes);
    fill(block, dense ? at.bytes : subscaled ? at.scales : at.codes, KINDS[kind].number);
  }
  for (int64_t rows = 1; rows <= STRIP_ROWS; ++rows) {
    const auto want = outputs(portable_matmul, kind, group, panels.bytes, rows);
    const auto got = outputs(avx_vnni_matmul, kind, group, panels.bytes, rows);
    if (std::memcmp(want.data(), got.data(), want.size() * sizeof(float)) != 0) {
      std::printf("kind %zu, group %ld, %ld rows: not equal\n", kind, static_cast<long>(group), static_cast<long>(rows));
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  trap();
  bool all = true;
  for (size_t kind = 0; kind < KIND_COUNT; ++kind) {
    for (int64_t group : {32, 128}) all = equal(kind, group) && all;
  }
  std::printf("%s, %ld instructions were trapped\n", all ? "equal" : "not equal", trapped);
  return all ? 0 : 1;
}
