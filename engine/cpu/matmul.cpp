// The loops around the strips: rows in blocks whose activations stay in L2, a few panels outside, 8 rows inside.
#include "matmul.h"

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "scratch.h"

namespace puna {
namespace {

constexpr int64_t ACTS_IN_CACHE = 512 << 10;  // half of a 1 MB L2; the other half is for the panels in use
constexpr int64_t SLAB_ROWS = 512;            // rows whose activations are prepared at once, which bounds the scratch
constexpr int64_t HIDDEN_BYTES = 16 << 20;    // of a gated MLP's two hidden activations
constexpr int64_t GATED_COLUMNS = 2048;       // of a row's gated product, made by one unit of work
constexpr int64_t UNIT_BYTES = 128 << 10;     // of weights read by a unit of work: far longer than claiming it takes
constexpr int64_t PANELS_IN_CACHE = 4;        // that a block of rows passes: a strip stays in L1 from panel to panel

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
  // `count` values of row r from column `first` on, which starts a superblock.
  void prepare(const float *x, int64_t r, int64_t first, int64_t count) {
    for (size_t form = 0; form < 3; ++form) {
      if (!wanted[form]) continue;
      uint8_t *at = row(form, r) + first / SUPERBLOCK * acts_bytes(static_cast<Arithmetic>(form));
      kernels().matmul->prepare[form](x, count, at);
    }
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

// How a projection is divided: blocks of rows whose activations stay in L2, times some panels each.
struct Division {
  const Projection *projection;
  int64_t rows, block, panels, step, units;

  Division(const Projection &p, int64_t rows, int64_t in_cache) : projection(&p), rows(rows), panels(p.panels->count()) {
    block = std::max(STRIP_ROWS, in_cache / STRIP_ROWS * STRIP_ROWS);
    const int64_t strips = divided_up(std::min(rows, block), STRIP_ROWS), wanted = UNIT_BYTES / (p.panels->panel_bytes * strips);
    // A lone strip reads on from unit to unit.
    step = lone() ? 1 : std::max(PANELS_IN_CACHE, wanted / PANELS_IN_CACHE * PANELS_IN_CACHE);
    units = divided_up(rows, block) * across();
  }
  bool lone() const { return rows <= STRIP_ROWS; }
  int64_t across() const { return divided_up(panels, step); }
  // Units begin.. as one, as many before `end` as lie side by side.
  Unit unit(int64_t begin, int64_t end) const {
    if (lone()) return {projection, 0, rows, begin, std::min(end, units) - begin};
    const int64_t row = begin / across() * block, panel = begin % across() * step;
    return {projection, row, std::min(block, rows - row), panel, std::min(step, panels - panel)};
  }
};

// All projections of the prepared rows, which are rows first_row.. of the outputs.
void multiply(Acts &acts, int64_t first_row, std::span<const Projection> projections) {
  std::vector<Division> divisions;
  int64_t units = 0;
  for (const Projection &p : projections) {
    if (multiply_wide(acts, first_row, p)) continue;
    divisions.emplace_back(p, acts.rows, ACTS_IN_CACHE / acts.stride(static_cast<size_t>(p.panels->shape().arithmetic)));
    units += divisions.back().units;
  }
  pool().run_spans(units, [&](int64_t begin, int64_t end) {
    for (const Division &division : divisions) {
      for (int64_t i = std::max(begin, int64_t{0}); i < std::min(end, division.units);) {
        const Unit unit = division.unit(i, end);
        run_unit(unit, acts, first_row);
        i += division.lone() ? unit.panels : 1;
      }
      begin -= division.units, end -= division.units;
    }
  });
}

// Rows first.. of the input in all forms.
void prepare(Acts &acts, const Input &input, int64_t first) {
  pool().run(acts.rows, [&](int64_t r) {
    const float *x = input.x + (first + r) * input.cols;
    if (input.norm) {
      thread_local Scratch normed;
      float *const y = normed.floats(input.cols);
      kernels().rows->norm(x, input.norm, input.eps, input.cols, y);
      x = y;
    }
    acts.prepare(x, r, 0, input.cols);
  });
}

// silu(gates) * ups in all forms. The products of a unit never leave the cache.
void gate(Acts &acts, const float *gates, const float *ups) {
  const int64_t chunks = divided_up(acts.cols, GATED_COLUMNS);
  pool().run(acts.rows * chunks, [&](int64_t unit) {
    alignas(64) float products[GATED_COLUMNS];
    const int64_t row = unit / chunks, column = unit % chunks * GATED_COLUMNS, at = row * acts.cols + column;
    const int64_t count = std::min(GATED_COLUMNS, acts.cols - column);
    kernels().rows->gate(gates + at, ups + at, count, products);
    acts.prepare(products, row, column, count);
  });
}

}  // namespace

void matmul(const Input &input, std::span<const Projection> projections) {
  Acts &acts = buffers().acts;
  for (int64_t first = 0; first < input.rows; first += SLAB_ROWS) {
    acts.reset(std::min(SLAB_ROWS, input.rows - first), input.cols, projections);
    prepare(acts, input, first);
    multiply(acts, first, projections);
  }
}

void gated_matmul(const Input &input, const GatedProjections &mlp) {
  auto &[acts, hidden_acts, gates, ups] = buffers();
  const int64_t hidden = mlp.gate.panels->rows;
  const int64_t fitting = HIDDEN_BYTES / (2 * sizeof(float) * hidden) / STRIP_ROWS * STRIP_ROWS;
  const int64_t block = std::clamp(fitting, STRIP_ROWS, SLAB_ROWS);
  Projection inner[2] = {mlp.gate, mlp.up};
  for (int64_t first = 0; first < input.rows; first += block) {
    const int64_t count = std::min(block, input.rows - first);
    inner[0].out = gates.floats(count * hidden);
    inner[1].out = ups.floats(count * hidden);
    acts.reset(count, input.cols, inner);
    prepare(acts, input, first);
    multiply(acts, 0, inner);
    hidden_acts.reset(count, hidden, {&mlp.down, 1});
    gate(hidden_acts, inner[0].out, inner[1].out);
    multiply(hidden_acts, first, {&mlp.down, 1});
  }
}

}  // namespace puna
