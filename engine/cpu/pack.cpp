// Packing: strips of 16 rows, read from a file or found in memory, are woven into a panel, in parallel over panels.
#include "pack.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>

#include "blocks.h"
#include "pool.h"

namespace puna {
namespace {

namespace mx = mlx::core;

constexpr int64_t UNIT_BYTES = 1 << 20;  // of the file: enough that a unit's scratch costs nothing

// Bytes of a tensor, and the table's word for their type.
struct Plane {
  int64_t nbytes;
  std::string dtype;
};

// So many bytes of a plane from an offset on: put into `scratch`, or where they lie anyway.
using Source = std::function<const uint8_t *(size_t plane, int64_t offset, int64_t nbytes, uint8_t *scratch)>;

Number number_of(const std::string &dtype) {
  if (dtype == "f16") return Number::f16;
  if (dtype == "bf16") return Number::bf16;
  if (dtype == "f32") return Number::f32;
  throw std::runtime_error("scales of type " + dtype + " are not supported");
}

Format format_of(const std::string &name) {
  for (const BlockRow &row : block_rows)
    if (name == row.name) return row.format;
  for (const AffineRow &row : affine_rows)
    if (name == row.name) return row.format;
  throw std::runtime_error("unknown weight format " + name);
}

// Bytes of one row in each plane of the file.
std::vector<int64_t> row_bytes(Format format, Number scales, int64_t cols) {
  for (const AffineRow &row : affine_rows) {
    if (row.format != format) continue;
    if (cols % row.group != 0) throw std::runtime_error("columns are not whole groups");
    const int64_t numbers = cols / row.group * bytes_of(scales);
    return {cols * row.bits / 8, numbers, numbers};
  }
  for (const BlockRow &row : block_rows) {
    if (row.format != format) continue;
    if (cols % row.values != 0) throw std::runtime_error("columns are not whole blocks");
    return {cols / row.values * row.bytes};
  }
  std::abort();  // every format is in one of the tables
}

void read_exactly(int fd, uint8_t *to, int64_t offset, int64_t nbytes) {
  while (nbytes > 0) {
    const ssize_t got = pread(fd, to, nbytes, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw std::runtime_error(std::string("reading weights: ") + std::strerror(errno));
    if (got == 0) throw std::runtime_error("the file ends inside a tensor, at byte " + std::to_string(offset));
    to += got, offset += got, nbytes -= got;
  }
}

// The planes' words of one column, from its codes of 32 k in `eights`: word i of a plane has, one behind the other, what
// words i, i + WIDTH... of the codes have for it. So shifts move two words at once, and none carries into a neighbour.
template <int BITS, int AT = 0>
void planes_of(const uint64_t eights[4], uint32_t *words) {
  constexpr int WIDTH = plane_width(BITS - AT);
  const auto part = [&](int i) { return eights[i] >> AT & ((1u << WIDTH) - 1) * 0x0101010101010101u; };
  if constexpr (WIDTH == 8) {
    std::memcpy(words, eights, 32);
  } else if constexpr (WIDTH == 4) {
    const uint64_t both[2] = {part(0) | part(2) << 4, part(1) | part(3) << 4};
    std::memcpy(words, both, 16);
  } else {
    const uint64_t all = part(0) | part(1) << 2 | part(2) << 4 | part(3) << 6;
    if constexpr (WIDTH == 2) std::memcpy(words, &all, 8);
    else *words = static_cast<uint32_t>(all) | static_cast<uint32_t>(all >> 32) << 1;
  }
  if constexpr (AT + WIDTH < BITS) planes_of<BITS, AT + WIDTH>(eights, words + WIDTH);
}

// Codes of 32 k x 16 columns, whose bits are gathered into planes, 16 columns side by side.
template <int BITS>
void weave_codes(const Staged strip[COLUMNS], int64_t g, uint8_t *planes) {
  uint32_t woven[BITS][COLUMNS];
  for (int c = 0; c < COLUMNS; ++c) {
    uint64_t eights[4];
    uint32_t words[BITS];
    std::memcpy(eights, strip[c].codes + GROUP * g, sizeof eights);
    planes_of<BITS>(eights, words);
    for (int i = 0; i < BITS; ++i) woven[i][c] = words[i];
  }
  std::memcpy(planes, woven, sizeof woven);
}

using WeaveKernel = void (*)(const Staged strip[COLUMNS], int64_t g, uint8_t *planes);

WeaveKernel weave_of(int bits) {
  switch (bits) {
    case 2: return weave_codes<2>;
    case 3: return weave_codes<3>;
    case 4: return weave_codes<4>;
    case 5: return weave_codes<5>;
    case 6: return weave_codes<6>;
    case 8: return weave_codes<8>;
    default: std::abort();  // no kind has such codes
  }
}

void weave_subscaled(const Staged strip[COLUMNS], const PanelKind &kind, const Layout &at, uint8_t *block) {
  for (int64_t c = 0; c < COLUMNS; ++c) {
    std::memcpy(block + 2 * c, &strip[c].d, 2);
    std::memcpy(block + 2 * (COLUMNS + c), &strip[c].dmin, 2);
    for (int64_t i = 0; i < SUPERBLOCK / kind.sub; ++i) {
      block[at.scales + i * COLUMNS + c] = strip[c].scales[i];
      if (at.mins != at.scales && kind.mins) block[at.mins + i * COLUMNS + c] = strip[c].mins[i];
    }
  }
}

template <int WIDTH>
void weave_numbers(const Staged strip[COLUMNS], const PanelKind &kind, int64_t group, const Layout &at, uint8_t *block) {
  for (int64_t i = 0; i < SUPERBLOCK / group; ++i) {
    for (int64_t c = 0; c < COLUMNS; ++c) {
      const int64_t lane = (i * COLUMNS + c) * WIDTH;
      std::memcpy(block + at.scales + lane, strip[c].numbers[i], WIDTH);
      if (kind.mins) std::memcpy(block + at.mins + lane, strip[c].biases[i], WIDTH);
    }
  }
}

void weave_grouped(const Staged strip[COLUMNS], const PanelKind &kind, int64_t group, const Layout &at,
                   uint8_t *block) {
  if (bytes_of(kind.number) == 4) weave_numbers<4>(strip, kind, group, at, block);
  else weave_numbers<2>(strip, kind, group, at, block);
}

template <class Word>
void weave_dense(const uint8_t *rows, int64_t count, const Panels &panels, uint8_t *panel) {
  const auto *values = reinterpret_cast<const Word *>(rows);
  auto *out = reinterpret_cast<Word *>(panel);
  for (int64_t k = 0; k < panels.cols; ++k)
    for (int64_t c = 0; c < COLUMNS; ++c) out[k * COLUMNS + c] = c < count ? values[c * panels.cols + k] : Word{0};
  std::fill(out + panels.cols * COLUMNS, out + panels.superblocks * SUPERBLOCK * COLUMNS, Word{0});
}

// What packing one tensor needs: its planes, and the bytes of a row in each.
struct Job {
  const Source &source;
  std::vector<int64_t> bytes;
  StageKernel stage;
  const Panels &panels;

  int64_t strip_bytes() const {
    int64_t sum = 0;
    for (const int64_t b : bytes) sum += b * COLUMNS;
    return sum;
  }
  void pack_panel(int64_t i, uint8_t *scratch) const;
  void weave(const RowSource &rows, int64_t count, uint8_t *panel) const;
};

void Job::pack_panel(int64_t i, uint8_t *scratch) const {
  const int64_t count = std::min(COLUMNS, panels.rows - i * COLUMNS);
  const uint8_t *at[3] = {};
  for (size_t p = 0; p < bytes.size(); ++p) {
    at[p] = source(p, i * COLUMNS * bytes[p], count * bytes[p], scratch);
    scratch += COLUMNS * bytes[p];
  }
  weave({at[0], at[1], at[2], panels.cols}, count, panels.panel(i));
}

void Job::weave(const RowSource &rows, int64_t count, uint8_t *panel) const {
  const PanelKind &kind = panels.shape();
  if (kind.arithmetic == Arithmetic::dense) {
    if (kind.number == Number::f32) weave_dense<uint32_t>(rows.codes, count, panels, panel);
    else weave_dense<uint16_t>(rows.codes, count, panels, panel);
    return;
  }
  const Layout at = layout(kind, panels.group);
  const int64_t numbers = bytes.size() == 3 ? bytes[1] : 0;
  const WeaveKernel weave_codes = weave_of(kind.bits);
  for (int64_t b = 0; b < panels.superblocks; ++b, panel += at.bytes) {
    Staged strip[COLUMNS] = {};
    for (int64_t c = 0; c < count; ++c)
      stage({rows.codes + c * bytes[0], rows.scales + c * numbers, rows.biases + c * numbers, rows.cols}, b, strip[c]);
    if (kind.arithmetic == Arithmetic::subscaled) weave_subscaled(strip, kind, at, panel);
    else weave_grouped(strip, kind, panels.group, at, panel);
    for (int64_t g = 0; g < GROUPS; ++g)
      weave_codes(strip, g, panel + at.codes + g * REGISTER * kind.bits);
  }
}

// Runs f over units on the pool; the first exception of any thread is thrown here.
template <class F>
void run_throwing(int64_t units, const F &f) {
  std::atomic<bool> failed{false};
  std::exception_ptr first;
  std::mutex mutex;
  pool().run(units, [&](int64_t unit) {
    if (failed) return;
    try {
      f(unit);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!failed.exchange(true)) first = std::current_exception();
    }
  });
  if (first) std::rethrow_exception(first);
}

// The one type of an affine tensor's scales and biases; GGUF formats have none of their own planes.
Number scale_number(const std::vector<Plane> &planes) {
  if (planes.size() != 3) return Number::f32;
  const Number number = number_of(planes[1].dtype);
  if (number_of(planes[2].dtype) != number) throw std::runtime_error("scales and biases differ in type");
  return number;
}

void check_sizes(const std::vector<Plane> &planes, const std::vector<int64_t> &bytes, int64_t rows) {
  if (planes.size() != bytes.size()) throw std::runtime_error("wrong number of planes for the format");
  for (size_t p = 0; p < planes.size(); ++p) {
    const int64_t has = planes[p].nbytes, asked = rows * bytes[p];
    if (has == asked) continue;
    throw std::runtime_error("a plane has " + std::to_string(has) + " bytes; its shape asks for " +
                             std::to_string(asked));
  }
}

std::shared_ptr<Panels> packed(const std::vector<Plane> &planes, const Source &source, const std::string &format, int64_t rows,
                               int64_t cols, Room *room) {
  if (rows <= 0 || cols <= 0) throw std::runtime_error("a matrix needs rows and columns");
  const Format row = format_of(format);
  const Number scales = scale_number(planes);
  const std::vector<int64_t> bytes = row_bytes(row, scales, cols);
  check_sizes(planes, bytes, rows);
  auto panels = std::make_shared<Panels>(target_of(row, scales), rows, cols, room);
  const Job job{source, bytes, stage_of(row, scales), *panels};
  const int64_t per_unit = std::max<int64_t>(1, UNIT_BYTES / job.strip_bytes());
  run_throwing((panels->count() + per_unit - 1) / per_unit, [&](int64_t unit) {
    const auto scratch = std::make_unique_for_overwrite<uint8_t[]>(job.strip_bytes());
    const int64_t end = std::min(panels->count(), (unit + 1) * per_unit);
    for (int64_t i = unit * per_unit; i < end; ++i) job.pack_panel(i, scratch.get());
  });
  return panels;
}

std::string word_of(mx::Dtype dtype) {
  if (dtype == mx::float32) return "f32";
  if (dtype == mx::float16) return "f16";
  if (dtype == mx::bfloat16) return "bf16";
  if (dtype == mx::uint32) return "u32";
  if (dtype == mx::uint8) return "u8";
  throw std::runtime_error("planes are of bytes, words or numbers");
}

// The type of a plane of codes: of a dense format it is the format's own name.
std::string word_of_codes(const std::string &format) {
  const Format row = format_of(format);
  for (const AffineRow &affine : affine_rows)
    if (affine.format == row) return "u32";
  for (const BlockRow &block : block_rows)
    if (block.format == row && block.values == 1) return format;
  return "u8";
}

}  // namespace

std::shared_ptr<Panels> pack(const std::vector<PlaneSpan> &spans, const std::string &format, int64_t rows, int64_t cols) {
  std::vector<Plane> planes;
  for (const auto &[fd, offset, nbytes, dtype] : spans) planes.push_back({nbytes, dtype});
  const auto read = [&](size_t plane, int64_t offset, int64_t nbytes, uint8_t *scratch) {
    read_exactly(std::get<0>(spans[plane]), scratch, std::get<1>(spans[plane]) + offset, nbytes);
    return scratch;
  };
  return packed(planes, read, format, rows, cols, nullptr);
}

std::shared_ptr<Panels> pack_arrays(const std::vector<mx::array> &arrays, const std::string &format, int64_t rows,
                                    int64_t cols, Room *room) {
  std::vector<Plane> planes;
  for (const mx::array &array : arrays) {
    if (!array.is_available() || !array.flags().row_contiguous) throw std::runtime_error("a plane does not lie plainly in memory");
    planes.push_back({static_cast<int64_t>(array.nbytes()), word_of(array.dtype())});
  }
  if (!planes.empty() && planes[0].dtype != word_of_codes(format)) throw std::runtime_error("codes are of another type");
  const auto there = [&](size_t plane, int64_t offset, int64_t, uint8_t *) { return arrays[plane].data<uint8_t>() + offset; };
  return packed(planes, there, format, rows, cols, room);
}

}  // namespace puna
