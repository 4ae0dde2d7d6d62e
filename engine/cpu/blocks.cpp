// The file layouts of the formats, each a function from a block to codes and scales.
#include "blocks.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <utility>

namespace puna {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint64_t ALL = 0x0101010101010101u;  // one in each byte

uint64_t eight_at(const uint8_t *bytes) {
  uint64_t eight;
  std::memcpy(&eight, bytes, 8);
  return eight;
}

// out[i] = shift of `count` bytes and mask. Eight at once: the mask leaves nothing of a neighbour's bits.
template <int COUNT>
void bits(const uint8_t *bytes, int shift, uint64_t mask, uint8_t *out) {
  for (int i = 0; i < COUNT; i += 8) {
    const uint64_t eight = eight_at(bytes + i) >> shift & (mask * ALL);
    std::memcpy(out + i, &eight, 8);
  }
}

// Sets bit AT of out[i] from bit `shift` of bytes[i].
template <int COUNT, int AT>
void add_bits(const uint8_t *bytes, int shift, uint64_t mask, uint8_t *out) {
  for (int i = 0; i < COUNT; i += 8) {
    const uint64_t eight = eight_at(out + i) | (eight_at(bytes + i) >> shift & (mask * ALL)) << AT;
    std::memcpy(out + i, &eight, 8);
  }
}

// 32 values in 16 bytes: the low nibbles, then the high ones.
void halves(const uint8_t *qs, uint8_t *out) {
  bits<16>(qs, 0, 15, out);
  bits<16>(qs, 4, 15, out + 16);
}

// 256 2-bit values: in each 32 bytes lie four runs of 32.
void quarters(const uint8_t *qs, uint8_t *out) {
  for (int g = 0; g < 8; ++g) bits<32>(qs + g / 4 * 32, g % 4 * 2, 3, out + 32 * g);
}

// 6-bit scales and minima of q4_k and q5_k: the last four have their upper bits in the first eight bytes.
void six_bits(const uint8_t *s, Staged &out) {
  for (int i = 0; i < 4; ++i) {
    out.scales[i] = s[i] & 63;
    out.mins[i] = s[4 + i] & 63;
    out.scales[4 + i] = (s[8 + i] & 15) | (s[i] >> 2 & 48);
    out.mins[4 + i] = s[8 + i] >> 4 | (s[4 + i] >> 2 & 48);
  }
}

// 256 nibbles of q4_k and q5_k: in each 32 bytes lie two runs of 32.
void nibble_runs(const uint8_t *qs, uint8_t *out) {
  for (int g = 0; g < 8; ++g) bits<32>(qs + g / 2 * 32, g % 2 * 4, 15, out + 32 * g);
}

void read(const block_q2_k &b, Staged &out) {
  quarters(b.qs, out.codes);
  std::memcpy(out.scales, b.scales, 16);
  out.d = b.d;
  out.dmin = b.dmin;
}

void read(const block_q3_k &b, Staged &out) {
  quarters(b.qs, out.codes);
  for (int g = 0; g < 8; ++g) add_bits<32, 2>(b.hmask, g, 1, out.codes + 32 * g);
  for (int i = 0; i < 16; ++i) {
    const int low = b.scales[i % 8] >> i / 8 * 4 & 15, high = b.scales[8 + i % 4] >> i / 4 * 2 & 3;
    out.scales[i] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  out.d = b.d;
}

void read(const block_q4_k &b, Staged &out) {
  nibble_runs(b.qs, out.codes);
  six_bits(b.scales, out);
  out.d = b.d;
  out.dmin = b.dmin;
}

void read(const block_q5_k &b, Staged &out) {
  nibble_runs(b.qs, out.codes);
  for (int g = 0; g < 8; ++g) add_bits<32, 4>(b.qh, g, 1, out.codes + 32 * g);
  six_bits(b.scales, out);
  out.d = b.d;
  out.dmin = b.dmin;
}

void read(const block_q6_k &b, Staged &out) {
  for (int g = 0; g < 8; ++g) {
    bits<32>(b.ql + g / 4 * 64 + g % 2 * 32, g % 4 / 2 * 4, 15, out.codes + 32 * g);
    add_bits<32, 4>(b.qh + g / 4 * 32, g % 4 * 2, 3, out.codes + 32 * g);
  }
  std::memcpy(out.scales, b.scales, 16);
  out.d = b.d;
}

void read(const block_iq4_xs &b, Staged &out) {
  for (int g = 0; g < 8; ++g) {
    halves(b.qs + 16 * g, out.codes + 32 * g);
    const int low = b.scales_l[g / 2] >> g % 2 * 4 & 15, high = b.scales_h >> 2 * g & 3;
    out.scales[g] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  out.d = b.d;
}

// The small blocks are group g of a superblock.
void half_number(uint16_t value, uint8_t number[4]) { std::memcpy(number, &value, 2); }

// Bit i of four bytes is bit 4 of code i: eight bits are spread over eight bytes, of which each keeps its own.
void fifth_bits(const uint8_t qh[4], uint8_t *out) {
  for (int i = 0; i < 4; ++i) {
    const uint64_t own = qh[i] * ALL & 0x8040201008040201u;
    const uint64_t eight = eight_at(out + 8 * i) | ((own + 0x7f * ALL) & 0x80 * ALL) >> 3;
    std::memcpy(out + 8 * i, &eight, 8);
  }
}

void read(const block_q4_0 &b, int g, Staged &out) {
  halves(b.qs, out.codes + 32 * g);
  half_number(b.d, out.numbers[g]);
}

void read(const block_q4_1 &b, int g, Staged &out) {
  halves(b.qs, out.codes + 32 * g);
  half_number(b.d, out.numbers[g]);
  half_number(b.m, out.biases[g]);
}

void read(const block_q5_0 &b, int g, Staged &out) {
  halves(b.qs, out.codes + 32 * g);
  fifth_bits(b.qh, out.codes + 32 * g);
  half_number(b.d, out.numbers[g]);
}

void read(const block_q5_1 &b, int g, Staged &out) {
  halves(b.qs, out.codes + 32 * g);
  fifth_bits(b.qh, out.codes + 32 * g);
  half_number(b.d, out.numbers[g]);
  half_number(b.m, out.biases[g]);
}

void read(const block_q8_0 &b, int g, Staged &out) {
  for (int i = 0; i < 32; i += 8) {
    const uint64_t eight = eight_at(reinterpret_cast<const uint8_t *>(b.qs) + i) ^ 0x80 * ALL;
    std::memcpy(out.codes + 32 * g + i, &eight, 8);
  }
  half_number(b.d, out.numbers[g]);
}

void read(const block_iq4_nl &b, int g, Staged &out) {
  halves(b.qs, out.codes + 32 * g);
  half_number(b.d, out.numbers[g]);
}

// Half of 2^(e - 127), whose codebook is doubled: exact in bf16, the two smallest as denormals.
void read(const block_mxfp4 &b, int g, Staged &out) {
  halves(b.qs, out.codes + 32 * g);
  half_number(static_cast<uint16_t>(b.e < 2 ? 0x20 << b.e : (b.e - 1) << 7), out.numbers[g]);
}

template <Format F>
void stage_block(const RowSource &row, int64_t b, Staged &out) {
  using Block = typename block_of<F>::type;
  constexpr int64_t values = block_of<F>::values, per_superblock = SUPERBLOCK / values;
  const auto *blocks = reinterpret_cast<const Block *>(row.codes) + b * per_superblock;
  const int64_t count = std::min(per_superblock, row.cols / values - b * per_superblock);
  if constexpr (values == SUPERBLOCK) read(*blocks, out);
  else
    for (int64_t g = 0; g < count; ++g) read(blocks[g], static_cast<int>(g), out);
}

// 8 codes of BITS each, one behind the other, into a byte each: halves, quarters and eighths move apart.
template <int BITS>
uint64_t spread(uint64_t eight) {
  const auto apart = [&](int codes, uint64_t every) {  // runs of so many codes, of which two lie together every so often
    const uint64_t low = ((uint64_t{1} << codes * BITS) - 1) * every;
    eight = (eight & low) | (eight & low << codes * BITS) << codes * (8 - BITS);
  };
  apart(4, 1);
  apart(2, 0x100000001u);
  apart(1, 0x1000100010001u);
  return eight;
}
template <>
uint64_t spread<8>(uint64_t eight) { return eight; }

// A row of words is one stream of bits, least significant first: BITS bytes hold 8 codes.
template <int BITS, int NUMBER_BYTES>
void stage_affine(const RowSource &row, int64_t b, int64_t group, Staged &out) {
  const int64_t begin = b * SUPERBLOCK, count = std::min(SUPERBLOCK, row.cols - begin);
  for (int64_t k = 0; k < count; k += 8) {
    uint64_t eight = 0;
    std::memcpy(&eight, row.codes + (begin + k) / 8 * BITS, BITS);
    eight = spread<BITS>(eight);
    std::memcpy(out.codes + k, &eight, 8);
  }
  for (int64_t i = 0; i < count / group; ++i) {
    const int64_t at = (begin / group + i) * NUMBER_BYTES;
    std::memcpy(out.numbers[i], row.scales + at, NUMBER_BYTES);
    std::memcpy(out.biases[i], row.biases + at, NUMBER_BYTES);
  }
}

template <Format F, int NUMBER_BYTES>
void stage_affine_of(const RowSource &row, int64_t b, Staged &out) {
  stage_affine<affine_of<F>::bits, NUMBER_BYTES>(row, b, affine_of<F>::group, out);
}

template <size_t I>
constexpr StageKernel block_kernel() {
  if constexpr (block_rows[I].values == 1) return nullptr;  // dense values have no blocks
  else return stage_block<block_rows[I].format>;
}

template <size_t... I>
StageKernel block_kernel_of(Format format, std::index_sequence<I...>) {
  StageKernel found = nullptr;
  const auto take = [&](bool matches, StageKernel kernel) { found = matches ? kernel : found; };
  (take(block_rows[I].format == format, block_kernel<I>()), ...);
  return found;
}

template <int NUMBER_BYTES, size_t... I>
StageKernel affine_kernel_of(Format format, std::index_sequence<I...>) {
  StageKernel found = nullptr;
  const auto take = [&](bool matches, StageKernel kernel) { found = matches ? kernel : found; };
  (take(affine_rows[I].format == format, stage_affine_of<affine_rows[I].format, NUMBER_BYTES>), ...);
  return found;
}

}  // namespace

StageKernel stage_of(Format format, Number scales) {
  constexpr auto blocks = std::make_index_sequence<std::size(block_rows)>{};
  constexpr auto affines = std::make_index_sequence<std::size(affine_rows)>{};
  if (const StageKernel found = block_kernel_of(format, blocks)) return found;
  return bytes_of(scales) == 4 ? affine_kernel_of<4>(format, affines) : affine_kernel_of<2>(format, affines);
}

}  // namespace puna
