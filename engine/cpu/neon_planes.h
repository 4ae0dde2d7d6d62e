// NEON: 32 values of 16 columns out of their bit planes, as signed bytes that sdot or smmla multiplies.
#pragma once

#include <arm_neon.h>

#include <array>

#include "panels.h"

namespace puna::neon {
namespace {

// What is multiplied is (code - offset) << shift. Bits that already lie at the top of a byte are signed where they lie,
// which saves the shift down and the subtraction; the shift goes when the sum becomes a float, which costs nothing.
constexpr int offset_of(const PanelKind &kind) { return kind.bits == 8 ? 128 : kind.zero; }
constexpr int shift_of(const PanelKind &kind) {
  if (kind.table != Table::none || kind.zero == 0) return 0;
  return kind.bits == 4 ? 4 : kind.bits == 6 ? 2 : 0;
}

// 8 consecutive k are an octet: of 16 columns 8 vectors, of which number i is, as FORM lays them out,
//   quads  columns 4 (i % 4) .. + 3, their k 4 (i / 4) .. + 3: what a panel holds
//   pairs  columns 2 i and 2 i + 1, 8 k each
enum class Form { quads, pairs };
constexpr int OCTETS = 4;  // of a group
constexpr int OCTET_VECTORS = 8;
struct alignas(64) Operands {
  int8_t bytes[OCTETS][OCTET_VECTORS][16];
};

// The planes of one vector of each octet.
struct Planes {
  uint8x16_t nibbles[2], crumbs, bits;
};

template <int O>
inline uint8x16_t nibble(const Planes &p) {
  if constexpr (O < 2) return vandq_u8(p.nibbles[O], vdupq_n_u8(15));
  else return vshrq_n_u8(p.nibbles[O - 2], 4);
}

// The same, but for garbage above the 4 bits.
template <int O>
inline uint8x16_t unclean_nibble(const Planes &p) {
  if constexpr (O < 2) return p.nibbles[O];
  else return nibble<O>(p);
}

template <int O>
inline uint8x16_t unclean_crumb(const Planes &p) {
  if constexpr (O == 0) return p.crumbs;
  else return vshrq_n_u8(p.crumbs, 2 * O);
}

template <int O>
inline uint8x16_t crumb(const Planes &p) {
  if constexpr (O == 3) return unclean_crumb<3>(p);
  else return vandq_u8(unclean_crumb<O>(p), vdupq_n_u8(3));
}

// Bit planes: the shift that brings an octet's bit to the bottom, and the mask that leaves it alone, for the vectors that
// hold the first and the second half of an octet's k, and for those that hold both.
enum class Half { first, second, both };
template <Half HALF, int O>
constexpr std::array<int8_t, 16> bit_shifts() {
  std::array<int8_t, 16> shifts{};
  for (int i = 0; i < 16; ++i) {
    const bool second = HALF == Half::second || (HALF == Half::both && i / 4 % 2);
    shifts[i] = static_cast<int8_t>(-(2 * O + second));
  }
  return shifts;
}
template <Half HALF, int O>
constexpr std::array<uint8_t, 16> bit_masks() {
  std::array<uint8_t, 16> masks{};
  for (int i = 0; i < 16; ++i) masks[i] = static_cast<uint8_t>(1 << -bit_shifts<HALF, O>()[i]);
  return masks;
}
template <Half HALF, int O>
constexpr std::array<int8_t, 16> SHIFTS = bit_shifts<HALF, O>();
template <Half HALF, int O>
constexpr std::array<uint8_t, 16> MASKS = bit_masks<HALF, O>();

template <Half HALF, int O>
inline uint8x16_t bit(const Planes &p) {
  return vandq_u8(vshlq_u8(p.bits, vld1q_s8((SHIFTS<HALF, O>.data()))), vdupq_n_u8(1));
}

// All ones where the bit is 0, which is where a code less its zero has its sign; the bits are flipped already.
template <Half HALF, int O>
inline uint8x16_t sign(const Planes &p) {
  return vtstq_u8(p.bits, vld1q_u8((MASKS<HALF, O>.data())));
}

// Six bits less 32, at the top of the byte; the crumbs' own top bits are flipped already.
template <int O>
inline uint8x16_t high_six(const Planes &p) {
  uint8x16_t low, high;
  if constexpr (O < 2) low = vshlq_n_u8(p.nibbles[O], 4);
  else low = vandq_u8(p.nibbles[O - 2], vdupq_n_u8(0xF0));
  if constexpr (O == 3) high = p.crumbs;
  else high = vshlq_n_u8(p.crumbs, 6 - 2 * O);
  return vsriq_n_u8(high, low, 2);
}

template <Table TABLE>
inline uint8x16_t looked_up(uint8x16_t code) {
  const int8_t(&values)[16] = TABLE == Table::iq4 ? codebook_iq4_nl : codebook_mxfp4;
  return vqtbl1q_u8(vreinterpretq_u8_s8(vld1q_s8(values)), code);
}

// The low AT bits of one, and above them another.
template <int AT>
inline uint8x16_t above(uint8x16_t low, uint8x16_t high) {
  return vsliq_n_u8(low, high, AT);
}

template <PanelKind KIND, Half HALF, int O>
inline uint8x16_t operand(const Planes &p) {
  if constexpr (KIND.table != Table::none) return looked_up<KIND.table>(nibble<O>(p));
  else if constexpr (KIND.bits == 2) return crumb<O>(p);
  else if constexpr (KIND.bits == 3 && KIND.zero == 4) return above<2>(unclean_crumb<O>(p), sign<HALF, O>(p));
  else if constexpr (KIND.bits == 3) return above<2>(unclean_crumb<O>(p), bit<HALF, O>(p));
  else if constexpr (KIND.bits == 4 && KIND.zero == 0) return nibble<O>(p);
  else if constexpr (KIND.bits == 4 && O < 2) return vshlq_n_u8(p.nibbles[O], 4);
  else if constexpr (KIND.bits == 4) return vandq_u8(p.nibbles[O - 2], vdupq_n_u8(0xF0));
  else if constexpr (KIND.bits == 5 && KIND.zero == 16) return above<4>(unclean_nibble<O>(p), sign<HALF, O>(p));
  else if constexpr (KIND.bits == 5) return above<4>(unclean_nibble<O>(p), bit<HALF, O>(p));
  else if constexpr (KIND.zero == 32) return high_six<O>(p);
  else return above<4>(unclean_nibble<O>(p), crumb<O>(p));
}

struct Two {
  uint8x16_t v[2];
};

// Of two registers of a plane, 4 columns of each, the two vectors of FORM.
template <Form FORM>
inline Two formed(uint8x16_t a, uint8x16_t b) {
  if constexpr (FORM == Form::quads) return {a, b};
  const uint32x4_t x = vreinterpretq_u32_u8(a), y = vreinterpretq_u32_u8(b);
  return {vreinterpretq_u8_u32(vzip1q_u32(x, y)), vreinterpretq_u8_u32(vzip2q_u32(x, y))};
}

// Registers 2 octet and 2 octet + 1 of a plane, columns 4 c .. + 3.
template <Form FORM>
inline Two read_two(const uint8_t *plane, int octet, int c) {
  const uint8_t *at = plane + 2 * REGISTER * octet + 16 * c;
  return formed<FORM>(vld1q_u8(at), vld1q_u8(at + REGISTER));
}

template <PanelKind KIND, Form FORM>
inline void read_planes(const uint8_t *p, int c, Planes two[2]) {
  constexpr bool flipped = KIND.table == Table::none && KIND.zero != 0;
  if constexpr (KIND.bits >= 4) {
    for (int o = 0; o < 2; ++o) {
      const Two v = read_two<FORM>(p, o, c);
      for (int i = 0; i < 2; ++i) {
        two[i].nibbles[o] = KIND.bits == 4 && flipped ? veorq_u8(v.v[i], vdupq_n_u8(0x88)) : v.v[i];
      }
    }
  }
  if constexpr (KIND.bits == 2 || KIND.bits == 3 || KIND.bits == 6) {
    const Two v = read_two<FORM>(KIND.bits == 6 ? p + 4 * REGISTER : p, 0, c);
    for (int i = 0; i < 2; ++i) two[i].crumbs = KIND.bits == 6 && flipped ? veorq_u8(v.v[i], vdupq_n_u8(0xAA)) : v.v[i];
  }
  if constexpr (KIND.bits == 3 || KIND.bits == 5) {
    const uint8x16_t read = vld1q_u8(p + (KIND.bits - 1) * REGISTER + 16 * c), bits = flipped ? vmvnq_u8(read) : read;
    const Two v = formed<FORM>(bits, bits);
    for (int i = 0; i < 2; ++i) two[i].bits = v.v[i];
  }
}

template <PanelKind KIND, Half HALF>
[[gnu::always_inline]] inline void write_octets(const Planes &p, int at, Operands &out) {
  const auto put = [&](int octet, uint8x16_t v) { vst1q_s8(out.bytes[octet][at], vreinterpretq_s8_u8(v)); };
  put(0, operand<KIND, HALF, 0>(p));
  put(1, operand<KIND, HALF, 1>(p));
  put(2, operand<KIND, HALF, 2>(p));
  put(3, operand<KIND, HALF, 3>(p));
}

// The planes of one group at p.
template <PanelKind KIND, Form FORM>
[[gnu::always_inline]] inline void unpack(const uint8_t *p, Operands &out) {
  constexpr bool quads = FORM == Form::quads;
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const int at[2] = {quads ? c : 2 * c, quads ? 4 + c : 2 * c + 1};
    if constexpr (KIND.bits == 8) {
#pragma GCC unroll 4
      for (int o = 0; o < OCTETS; ++o) {
        const Two v = read_two<FORM>(p, o, c);
        for (int i = 0; i < 2; ++i) {
          vst1q_s8(out.bytes[o][at[i]], vreinterpretq_s8_u8(veorq_u8(v.v[i], vdupq_n_u8(128))));
        }
      }
    } else {
      Planes two[2];
      read_planes<KIND, FORM>(p, c, two);
      write_octets<KIND, quads ? Half::first : Half::both>(two[0], at[0], out);
      write_octets<KIND, quads ? Half::second : Half::both>(two[1], at[1], out);
    }
  }
}

// R rows of COUNT bytes of activations, 8 bytes of two rows side by side. A row too few is the last one twice.
template <int R, int COUNT>
struct RowPairs {
  static constexpr int UNITS = (R + 1) / 2;
  alignas(64) int8_t two[COUNT / 8][UNITS][16];

  RowPairs(const int8_t *q, int64_t stride) {
#pragma GCC unroll 4
    for (int u = 0; u < UNITS; ++u) {
      const int8_t *even = q + 2 * u * stride, *odd = 2 * u + 1 < R ? even + stride : even;
      for (int k = 0; k < COUNT / 16; ++k) {
        const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(even + 16 * k)), b = vreinterpretq_s64_s8(vld1q_s8(odd + 16 * k));
        vst1q_s8(two[2 * k][u], vreinterpretq_s8_s64(vzip1q_s64(a, b)));
        vst1q_s8(two[2 * k + 1][u], vreinterpretq_s8_s64(vzip2q_s64(a, b)));
      }
    }
  }
};

}  // namespace
}  // namespace puna::neon
