// A weight matrix as panels: 16 output columns side by side, K-major, the bits still packed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <vector>

#include "formats.h"

namespace puna {

constexpr int64_t COLUMNS = 16;      // output columns of a panel: the lanes of one AVX-512 register of sums
constexpr int64_t SUPERBLOCK = 256;  // values of K that lie together; K is padded to it with zeros
constexpr int64_t GROUP = 32;        // values of K that are unpacked at once
constexpr int64_t GROUPS = SUPERBLOCK / GROUP;
constexpr int64_t REGISTER = 64;     // bytes of 16 columns x 4 consecutive k, the operand of a byte dot product

// How the scales of a format combine, which is the order of arithmetic of its kernels (see matmul.h).
enum class Arithmetic { subscaled, grouped, dense };
enum class Number { f16, bf16, f32 };
enum class Table { none, iq4, mxfp4 };

// What a kernel must know of a format at compile time. Formats with equal rows share one kernel.
//
// A superblock of a panel is, in this order and with 16 columns innermost:
//   subscaled  d f16 (16), dmin f16 (16), then per `sub` values a scale byte (16), then as many minimum bytes (16);
//              2-bit codes have both in one byte, the scale in the low nibble
//   grouped    a scale (16) of type `number` for each group of the format, then as many biases
//   both       per 32 values the planes of the codes: 64 bytes for each bit of a code
//   dense      256 x 16 values of type `number`
struct PanelKind {
  Arithmetic arithmetic;
  Number number;  // of a group's scale, or of a dense value
  int bits;       // of a code
  int zero;       // added to the values so that codes (or table entries) are not negative
  int sub;        // subscaled: values that share a scale byte
  bool mins;      // subscaled: minima are subtracted; grouped: biases are added
  Table table;    // codes are indices into it

  constexpr bool operator==(const PanelKind &) const = default;
};

constexpr int64_t bytes_of(Number number) { return number == Number::f32 ? 4 : 2; }

constexpr PanelKind subscaled(int bits, int sub, int zero, bool mins, Table table = Table::none) {
  return {Arithmetic::subscaled, Number::f16, bits, zero, sub, mins, table};
}
constexpr PanelKind grouped(int bits, int zero, Number number, Table table = Table::none) {
  return {Arithmetic::grouped, number, bits, zero, 0, false, table};
}
constexpr PanelKind affine(int bits, Number number) {
  return {Arithmetic::grouped, number, bits, 0, 0, true, Table::none};
}
constexpr PanelKind dense(Number number) { return {Arithmetic::dense, number, 0, 0, 0, false, Table::none}; }

constexpr PanelKind KINDS[] = {
    subscaled(2, 16, 0, true),                 // q2_k
    subscaled(3, 16, 4, false),                // q3_k
    subscaled(4, 32, 0, true),                 // q4_k
    subscaled(5, 32, 0, true),                 // q5_k
    subscaled(6, 16, 32, false),               // q6_k
    subscaled(4, 32, 128, false, Table::iq4),  // iq4_xs
    grouped(4, 8, Number::f16),                // q4_0
    grouped(5, 16, Number::f16),               // q5_0
    grouped(8, 128, Number::f16),              // q8_0
    grouped(4, 128, Number::f16, Table::iq4),  // iq4_nl
    grouped(4, 128, Number::bf16, Table::mxfp4),
    affine(2, Number::f16), affine(2, Number::bf16), affine(2, Number::f32),
    affine(3, Number::f16), affine(3, Number::bf16), affine(3, Number::f32),
    affine(4, Number::f16), affine(4, Number::bf16), affine(4, Number::f32),  // f16: q4_1 too
    affine(5, Number::f16), affine(5, Number::bf16), affine(5, Number::f32),  // f16: q5_1 too
    affine(6, Number::f16), affine(6, Number::bf16), affine(6, Number::f32),
    affine(8, Number::f16), affine(8, Number::bf16), affine(8, Number::f32),
    dense(Number::f32), dense(Number::f16), dense(Number::bf16),
};
constexpr size_t KIND_COUNT = std::size(KINDS);

constexpr size_t kind_index(const PanelKind &kind) {
  size_t i = 0;
  while (!(KINDS[i] == kind)) ++i;  // a kind that is no row does not compile where this is constexpr
  return i;
}

// The 16 values of a table, with 128 added so that they are unsigned bytes; the kinds that use one have that zero.
constexpr std::array<uint8_t, 16> unsigned_bytes(const int8_t (&values)[16]) {
  std::array<uint8_t, 16> bytes{};
  for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>(values[i] + 128);
  return bytes;
}
inline constexpr std::array<uint8_t, 16> IQ4 = unsigned_bytes(codebook_iq4_nl), MXFP4 = unsigned_bytes(codebook_mxfp4);

// A code's bits lie in planes, low bits first: 8, 4, 2, 1, or 4 + 1, 4 + 2, 2 + 1. Of the 8 registers of a group
// (register j holds k = 4 j .. 4 j + 3), a plane of w bits has w, and register j is bits w (j / w) and up of its j % w.
constexpr int plane_width(int bits_left) { return bits_left >= 8 ? 8 : bits_left >= 4 ? 4 : bits_left >= 2 ? 2 : 1; }

// Byte offsets inside a superblock.
struct Layout {
  int64_t scales;  // scale bytes, or group scales
  int64_t mins;    // minimum bytes, or group biases
  int64_t codes;   // planes of group 0
  int64_t bytes;
};

static constexpr Layout layout(const PanelKind &kind, int64_t group) {
  if (kind.arithmetic == Arithmetic::dense) return {0, 0, 0, SUPERBLOCK * COLUMNS * bytes_of(kind.number)};
  const bool sub = kind.arithmetic == Arithmetic::subscaled;
  const int64_t scales = sub ? 2 * COLUMNS * 2 : 0;
  const int64_t count = SUPERBLOCK / (sub ? kind.sub : group);
  const int64_t width = count * COLUMNS * (sub ? 1 : bytes_of(kind.number));
  const bool shared_byte = sub && kind.bits == 2;
  const int64_t mins = shared_byte ? scales : scales + width;
  const int64_t codes = mins + (kind.mins || shared_byte ? width : 0);
  return {scales, mins, codes, codes + GROUPS * REGISTER * kind.bits};
}

// What a file's format becomes. `scales` is the type of an affine format's scales and biases, unused by the others.
struct Target {
  PanelKind kind;
  int64_t group;  // grouped: values that share a scale; else 0
};
Target target_of(Format format, Number scales);

// Memory for panels that are soon dropped: what one had the next takes, so the system gives it, and fills it with zeros, once.
// It holds as many pieces as were in use together, each as large as the largest that was asked of it.
class Room {
 public:
  Room();
  ~Room();
  std::shared_ptr<uint8_t[]> take(size_t bytes);  // in use until the last who holds it lets go
  size_t nbytes() const;                          // of the pieces, in use or not

 private:
  struct Piece;
  std::vector<std::shared_ptr<Piece>> pieces_;
};

// A matrix (rows, cols) whose outputs are its rows. The data is written once, by pack.
struct Panels {
  size_t kind;    // row of KINDS
  int64_t group;  // grouped: values that share a scale
  int64_t rows, cols, superblocks, panel_bytes;
  std::shared_ptr<uint8_t[]> data;

  Panels(const Target &target, int64_t rows, int64_t cols, Room *room = nullptr);
  const PanelKind &shape() const { return KINDS[kind]; }
  int64_t count() const { return (rows + COLUMNS - 1) / COLUMNS; }
  int64_t nbytes() const { return count() * panel_bytes; }
  uint8_t *panel(int64_t i) const { return data.get() + i * panel_bytes; }
};

// A sub-scale and minimum as integers, from the bytes at these places.
struct SubScale {
  int scale, minimum;
};
constexpr SubScale sub_scale(const PanelKind &kind, const uint8_t *scale, const uint8_t *minimum) {
  if (kind.bits == 2) return {*scale & 15, *scale >> 4};
  return {kind.zero ? static_cast<int8_t>(*scale) : *scale, kind.mins ? *minimum : 0};
}

// The signed values (code or table entry, minus zero) of 32 k x 16 columns, out of the planes of one group.
void group_values(const PanelKind &kind, const uint8_t *planes, int16_t values[GROUP][COLUMNS]);

// One row of the matrix as float32 (cols), bit for bit what the format's reference decoder gives.
void decode_row(const Panels &panels, int64_t row, float *out);

}  // namespace puna
