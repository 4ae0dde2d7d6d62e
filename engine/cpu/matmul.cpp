// The loops around the strips: rows in blocks whose activations stay in L2, a few panels outside, 8 rows inside.
#include "matmul.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace puna {
namespace {

constexpr int64_t ACTS_IN_CACHE = 512 << 10;  // half of a 1 MB L2; the other half is for the panels in use
constexpr int64_t SLAB_ROWS = 512;            // rows whose activations are prepared at once, which bounds the scratch
constexpr int64_t HIDDEN_BYTES = 16 << 20;    // of a gated MLP's two hidden activations
constexpr int64_t UNIT_BYTES = 128 << 10;     // of weights read by a unit of work: far longer than claiming it takes
constexpr int64_t PANELS_IN_CACHE = 4;        // that a block of rows passes: a strip stays in L1 from panel to panel

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Grows and is never given back: bounded by SLAB_ROWS and HIDDEN_BYTES, and a step asks for the same again.
class Scratch {
 public:
  uint8_t *bytes(size_t wanted) {
    if (wanted > size_) {
      data_.reset(static_cast<uint8_t *>(std::aligned_alloc(64, (wanted + 63) / 64 * 64)), std::free);
      if (!data_) throw std::bad_alloc();
      size_ = wanted;
    }
    return data_.get();
  }
  float *floats(size_t wanted) { return reinterpret_cast<float *>(bytes(wanted * sizeof(float))); }

 private:
  std::shared_ptr<uint8_t> data_;
  size_t size_ = 0;
};

// Rows of activations in the forms that some projections want.
struct Acts {
  int64_t rows = 0, cols = 0;
  Scratch forms[3];  // by Arithmetic
  bool wanted[3] = {};

  int64_t stride(size_t form) const { return divided_up(cols, SUPERBLOCK) * acts_bytes(static_cast<Arithmetic>(form)); }
  void reset(int64_t rows_, int64_t cols_, std::span<const Projection> projections) {
    rows = rows_, cols = cols_;
    std::fill_n(wanted, 3, false);
    for (const Projection &p : projections) wanted[static_cast<size_t>(p.panels->shape().arithmetic)] = true;
    for (size_t form = 0; form < 3; ++form)
      if (wanted[form]) forms[form].bytes(rows * stride(form));
  }
  uint8_t *row(size_t form, int64_t r) { return forms[form].bytes(0) + r * stride(form); }
  void prepare(const float *x, int64_t r) {
    for (size_t form = 0; form < 3; ++form)
      if (wanted[form]) kernels().matmul->prepare[form](x, cols, row(form, r));
  }
};

// The scratch of the thread that calls; the pool's threads reach it by reference.
struct Buffers {
  Acts acts, hidden_acts;
  Scratch gates, ups;
};
Buffers &buffers() {
  thread_local Buffers mine;
  return mine;
}

// A share of one projection: a block of rows times some panels.
struct Unit {
  const Projection *projection;
  int64_t row, rows, panel, panels;
};

void run_unit(const Unit &unit, Acts &acts, int64_t first_row) {
  const Projection &p = *unit.projection;
  const Panels &panels = *p.panels;
  const size_t form = static_cast<size_t>(panels.shape().arithmetic);
  const int64_t strips = divided_up(unit.rows, STRIP_ROWS);
  const int64_t step = strips == 1 ? unit.panels : PANELS_IN_CACHE;
  for (int64_t panel = unit.panel; panel < unit.panel + unit.panels; panel += step) {
    const int64_t column = panel * COLUMNS, end = std::min(unit.panel + unit.panels, panel + step) * COLUMNS;
    // Strips are of even height, since a short one is slow.
    for (int64_t i = 0; i < strips; ++i) {
      const int64_t top = unit.row + unit.rows * i / strips, bottom = unit.row + unit.rows * (i + 1) / strips;
      const int64_t at = (first_row + top) * panels.rows + column;
      kernels().matmul->strips[panels.kind](Strip{
          .panels = panels.panel(panel), .panel_bytes = panels.panel_bytes, .superblocks = panels.superblocks,
          .group = panels.group, .columns = std::min(end, panels.rows) - column, .acts = acts.row(form, top),
          .acts_stride = acts.stride(form), .rows = bottom - top, .out = p.out + at, .out_stride = panels.rows,
          .bias = p.bias ? p.bias + column : nullptr, .residual = p.residual ? p.residual + at : nullptr});
    }
  }
}

// Whether the projection was taken whole.
bool multiply_wide(Acts &acts, int64_t first_row, const Projection &p) {
  const auto wide = kernels().matmul->wide[p.panels->kind];
  if (!wide || acts.rows < WIDE_ROWS) return false;
  const size_t form = static_cast<size_t>(p.panels->shape().arithmetic);
  const int64_t at = first_row * p.panels->rows;
  wide({p.panels, p.bias, p.residual ? p.residual + at : nullptr, p.out + at}, acts.row(form, 0), acts.stride(form), acts.rows);
  return true;
}

// All projections of the prepared rows, which are rows first_row.. of the outputs.
void multiply(Acts &acts, int64_t first_row, std::span<const Projection> projections) {
  std::vector<Unit> units;
  for (const Projection &p : projections) {
    if (multiply_wide(acts, first_row, p)) continue;
    const int64_t in_cache = ACTS_IN_CACHE / acts.stride(static_cast<size_t>(p.panels->shape().arithmetic));
    const int64_t block = std::max(STRIP_ROWS, in_cache / STRIP_ROWS * STRIP_ROWS), count = p.panels->count();
    for (int64_t row = 0; row < acts.rows; row += block) {
      const int64_t rows = std::min(block, acts.rows - row);
      const int64_t wanted = UNIT_BYTES / (p.panels->panel_bytes * divided_up(rows, STRIP_ROWS));
      const int64_t step = std::max(PANELS_IN_CACHE, wanted / PANELS_IN_CACHE * PANELS_IN_CACHE);
      for (int64_t i = 0; i < count; i += step) units.push_back({&p, row, rows, i, std::min(step, count - i)});
    }
  }
  pool().run(static_cast<int64_t>(units.size()), [&](int64_t i) { run_unit(units[i], acts, first_row); });
}

}  // namespace

void matmul(const float *x, int64_t rows, int64_t cols, std::span<const Projection> projections) {
  Acts &acts = buffers().acts;
  for (int64_t first = 0; first < rows; first += SLAB_ROWS) {
    acts.reset(std::min(SLAB_ROWS, rows - first), cols, projections);
    pool().run(acts.rows, [&](int64_t r) { acts.prepare(x + (first + r) * cols, r); });
    multiply(acts, first, projections);
  }
}

void gated_matmul(const float *x, int64_t rows, int64_t cols, const GatedProjections &mlp) {
  auto &[acts, hidden_acts, gates, ups] = buffers();
  const int64_t hidden = mlp.gate.panels->rows;
  const int64_t fitting = HIDDEN_BYTES / (2 * sizeof(float) * hidden) / STRIP_ROWS * STRIP_ROWS;
  const int64_t block = std::clamp(fitting, STRIP_ROWS, SLAB_ROWS);
  Projection inner[2] = {mlp.gate, mlp.up};
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    float *const gate = inner[0].out = gates.floats(count * hidden);
    float *const up = inner[1].out = ups.floats(count * hidden);
    acts.reset(count, cols, inner);
    pool().run(count, [&, &acts = acts](int64_t r) { acts.prepare(x + (first + r) * cols, r); });
    multiply(acts, 0, inner);
    hidden_acts.reset(count, hidden, {&mlp.down, 1});
    pool().run(count, [&, &acts = hidden_acts](int64_t r) {
      kernels().rows->gate(gate + r * hidden, up + r * hidden, hidden, gate + r * hidden);
      acts.prepare(gate + r * hidden, r);
    });
    multiply(hidden_acts, first, {&mlp.down, 1});
  }
}

}  // namespace puna
