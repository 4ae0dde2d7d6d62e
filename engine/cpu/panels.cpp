// Panels in memory: which kind a format becomes, their storage, and reading one row back.
#include "panels.h"

#include <algorithm>
#include <cassert>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "numbers.h"

namespace puna {
namespace {

constexpr size_t HUGE_PAGE = 2 << 20;
constexpr size_t SLAB = 64 << 20;

// Huge pages: with small ones, each a walk through the system's tables, a thread reads about two thirds as fast.
struct Slab {
  size_t size, used = 0;
  uint8_t *memory;

  explicit Slab(size_t bytes) : size((bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE) {
    memory = static_cast<uint8_t *>(std::aligned_alloc(HUGE_PAGE, size));
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    madvise(memory, size, MADV_HUGEPAGE);  // a wish: the result does not matter
#endif
  }
  Slab(const Slab &) = delete;
  Slab &operator=(const Slab &) = delete;
  ~Slab() { std::free(memory); }
};

// Memory that keeps its slab. Matrices lie there one behind the other, as they were loaded, so that a token's pass over a
// model is a few long runs. What a slab has left costs nothing, as it was never touched.
std::shared_ptr<uint8_t[]> storage(size_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Slab> last;  // goes with the last of its matrices
  std::lock_guard lock(mutex);
  std::shared_ptr<Slab> slab = last.lock();
  if (!slab || slab->size - slab->used < bytes) last = slab = std::make_shared<Slab>(std::max(bytes, SLAB));
  uint8_t *const at = slab->memory + slab->used;
  slab->used += (bytes + 63) / 64 * 64;
  return {std::move(slab), at};
}

// Products are rounded in the order of the reference decoders: scale of the sub-block first, then the value.
void decode_group(const Panels &panels, const uint8_t *block, int64_t g, int64_t column, float out[GROUP]) {
  const PanelKind &kind = panels.shape();
  const Layout at = layout(kind, panels.group);
  int16_t values[GROUP][COLUMNS];
  group_values(kind, block + at.codes + g * REGISTER * kind.bits, values);
  for (int64_t k = 0; k < GROUP; ++k) {
    float scale, minimum = 0;
    if (kind.arithmetic == Arithmetic::subscaled) {
      const int64_t i = (GROUP * g + k) / kind.sub * COLUMNS + column;
      const SubScale sub = sub_scale(kind, block + at.scales + i, block + at.mins + i);
      scale = number_at(Number::f16, block, column) * static_cast<float>(sub.scale);
      if (kind.mins) minimum = -(number_at(Number::f16, block + 2 * COLUMNS, column) * static_cast<float>(sub.minimum));
    } else {
      const int64_t i = GROUP * g / panels.group * COLUMNS + column;
      scale = number_at(kind.number, block + at.scales, i);
      if (kind.mins) minimum = number_at(kind.number, block + at.mins, i);
    }
    const float product = scale * static_cast<float>(values[k][column]);
    out[k] = kind.mins ? product + minimum : product;
  }
}

}  // namespace

Target target_of(Format format, Number scales) {
  for (const AffineRow &row : affine_rows) {
    if (row.format == format) return {affine(row.bits, scales), row.group};
  }
  switch (format) {
    case Format::f32: return {dense(Number::f32), 0};
    case Format::f16: return {dense(Number::f16), 0};
    case Format::bf16: return {dense(Number::bf16), 0};
    case Format::q4_0: return {grouped(4, 8, Number::f16), 32};
    case Format::q4_1: return {affine(4, Number::f16), 32};
    case Format::q5_0: return {grouped(5, 16, Number::f16), 32};
    case Format::q5_1: return {affine(5, Number::f16), 32};
    case Format::q8_0: return {grouped(8, 128, Number::f16), 32};
    case Format::q2_k: return {subscaled(2, 16, 0, true), 0};
    case Format::q3_k: return {subscaled(3, 16, 4, false), 0};
    case Format::q4_k: return {subscaled(4, 32, 0, true), 0};
    case Format::q5_k: return {subscaled(5, 32, 0, true), 0};
    case Format::q6_k: return {subscaled(6, 16, 32, false), 0};
    case Format::iq4_nl: return {grouped(4, 128, Number::f16, Table::iq4), 32};
    case Format::iq4_xs: return {subscaled(4, 32, 128, false, Table::iq4), 0};
    case Format::mxfp4: return {grouped(4, 128, Number::bf16, Table::mxfp4), 32};
    default: throw std::runtime_error("no panels for format " + std::to_string(static_cast<int>(format)));
  }
}

struct Room::Piece : Slab {
  using Slab::Slab;
};

Room::Room() = default;
Room::~Room() = default;

// The smallest piece that is free and large enough. Where none is, the largest free one gives way to one that is.
std::shared_ptr<uint8_t[]> Room::take(size_t bytes) {
  std::shared_ptr<Piece> *fits = nullptr, *largest = nullptr;
  for (auto &piece : pieces_) {
    if (piece.use_count() > 1) continue;
    if (piece->size >= bytes && (!fits || piece->size < (*fits)->size)) fits = &piece;
    if (!largest || piece->size > (*largest)->size) largest = &piece;
  }
  if (!fits) {
    if (!largest) largest = &pieces_.emplace_back();
    largest->reset();
    *largest = std::make_shared<Piece>(bytes);
    fits = largest;
  }
  (*fits)->used = std::max((*fits)->used, bytes);
  return {*fits, (*fits)->memory};
}

size_t Room::nbytes() const {
  size_t sum = 0;
  for (const auto &piece : pieces_) sum += piece->used;
  return sum;
}

Panels::Panels(const Target &target, int64_t rows, int64_t cols, Room *room)
    : kind(kind_index(target.kind)),
      group(target.group),
      rows(rows),
      cols(cols),
      superblocks((cols + SUPERBLOCK - 1) / SUPERBLOCK),
      panel_bytes(superblocks * layout(target.kind, target.group).bytes),
      data(room ? room->take(nbytes()) : storage(nbytes())) {}

void group_values(const PanelKind &kind, const uint8_t *planes, int16_t values[GROUP][COLUMNS]) {
  uint8_t codes[8 * REGISTER] = {};
  for (int at = 0; at < kind.bits;) {
    const int width = plane_width(kind.bits - at), mask = (1 << width) - 1;
    for (int j = 0; j < 8; ++j) {
      const uint8_t *plane = planes + j % width * REGISTER;
      const int shift = j / width * width;
      for (int b = 0; b < REGISTER; ++b) codes[REGISTER * j + b] |= (plane[b] >> shift & mask) << at;
    }
    planes += width * REGISTER;
    at += width;
  }
  if (kind.table != Table::none) {
    const auto &table = kind.table == Table::iq4 ? IQ4 : MXFP4;
    for (uint8_t &code : codes) code = table[code];
  }
  for (int k = 0; k < GROUP; ++k) {
    const uint8_t *four = codes + REGISTER * (k / 4) + k % 4;
    for (int c = 0; c < COLUMNS; ++c) values[k][c] = static_cast<int16_t>(four[4 * c] - kind.zero);
  }
}

void decode_row(const Panels &panels, int64_t row, float *out) {
  assert(row >= 0 && row < panels.rows);
  const PanelKind &kind = panels.shape();
  const uint8_t *panel = panels.panel(row / COLUMNS);
  const int64_t column = row % COLUMNS;
  if (kind.arithmetic == Arithmetic::dense) {
    for (int64_t k = 0; k < panels.cols; ++k) out[k] = number_at(kind.number, panel, k * COLUMNS + column);
    return;
  }
  const int64_t bytes = layout(kind, panels.group).bytes;
  for (int64_t k = 0; k < panels.cols; k += GROUP) {
    float values[GROUP];
    decode_group(panels, panel + k / SUPERBLOCK * bytes, k % SUPERBLOCK / GROUP, column, values);
    std::copy_n(values, std::min(GROUP, panels.cols - k), out + k);
  }
}

}  // namespace puna
