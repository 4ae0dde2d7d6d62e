// The loops around the SME kernels: shares of columns for the units, blocks of columns and of K, panels of 64.
#include "sme_wide.h"

#include <algorithm>
#include <atomic>
#include <optional>

#include "sme_line.h"
#include "sme_operands.h"

namespace puna {
namespace {

// Scales are written with B and read with the sums: a step is decoded when that of B_SLOTS before is multiplied, which is
// when that of SUM_SLOTS before that one is finished.
constexpr int64_t SCALE_SLOTS = B_SLOTS + SUM_SLOTS;
constexpr int64_t SETS = 4;  // at least, of a unit's share, so that others find groups that are not opened
constexpr int64_t ALIGNMENT = 128;  // a cache line of Apple's

// What all of the work of a projection shares.
struct Job {
  const Projection *p;
  WideActs acts;
  Blocking block;
  int64_t tiles() const { return (acts.rows + TILE_ROWS - 1) / TILE_ROWS; }
  int64_t groups() const { return (p->panels->rows + WIDE_COLUMNS - 1) / WIDE_COLUMNS; }
};

// One panel of 64 columns in one block of K.
struct Step {
  int64_t group;             // of 64 columns
  int64_t place;             // where its outputs are kept meanwhile: one of 2 x (columns / 64)
  int64_t superblock, superblocks;
  bool first, last;  // block of K
};

// A unit's share of the groups. It opens them in sets, ascending; other threads take single groups from the end. So how
// much falls to whom follows from how fast they are.
class Groups {
 public:
  Groups(int64_t begin, int64_t end) : state_(static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end)) {}

  // Where the groups end that the unit has opened, which go at least to `first` if there are any from there on.
  int64_t opened(int64_t first, int64_t most) {
    uint64_t state = state_.load(std::memory_order_relaxed);
    while (front(state) <= first && front(state) < back(state)) {
      const auto next = static_cast<uint64_t>(std::min(front(state) + most, back(state)));
      const uint64_t opened = next << 32 | (state & UINT32_MAX);
      if (state_.compare_exchange_weak(state, opened, std::memory_order_relaxed)) state = opened;
    }
    return front(state);
  }
  // A group that nobody has opened.
  std::optional<int64_t> take() {
    uint64_t state = state_.load(std::memory_order_relaxed);
    while (front(state) < back(state))
      if (state_.compare_exchange_weak(state, state - 1, std::memory_order_relaxed)) return back(state) - 1;
    return {};
  }

 private:
  static int64_t front(uint64_t state) { return static_cast<int64_t>(state >> 32); }
  static int64_t back(uint64_t state) { return static_cast<int64_t>(state & UINT32_MAX); }
  std::atomic<uint64_t> state_;
};

// Steps of a unit: sets of groups outside, then blocks of K, then groups. All sets but the last are full.
class Steps {
 public:
  Steps(const Job &job, int64_t begin, int64_t end)
      : groups_(begin, end), begin_(begin), wide_(job.block.columns / WIDE_COLUMNS), all_(job.p->panels->superblocks),
        deep_(job.block.k / SUPERBLOCK), cuts_((all_ + deep_ - 1) / deep_) {}

  bool open(int64_t step) { return step % (wide_ * cuts_) < width(step) * cuts_; }
  // Of a step that is open.
  Step at(int64_t step) {
    const int64_t set = step / (wide_ * cuts_), in_set = step % (wide_ * cuts_), width = this->width(step);
    const int64_t cut = in_set / width, from = cut * deep_;
    const int64_t group = in_set % width;
    return {begin_ + set * wide_ + group, set % 2 * wide_ + group, from, std::min(deep_, all_ - from),
            cut == 0, cut == cuts_ - 1};
  }
  Groups &groups() { return groups_; }

 private:
  // Of the set that a step belongs to.
  int64_t width(int64_t step) {
    const int64_t first = begin_ + step / (wide_ * cuts_) * wide_;
    return std::clamp<int64_t>(groups_.opened(first, wide_) - first, 0, wide_);
  }

  Groups groups_;
  const int64_t begin_, wide_, all_, deep_, cuts_;
};

PanelPart part_of(const Job &job, const Step &step, int64_t quarter) {
  const Panels &panels = *job.p->panels;
  return {&panels, std::min(step.group * 4 + quarter, panels.count() - 1), step.superblock, step.superblocks};
}
bool has_panel(const Job &job, const Step &step, int64_t quarter) {
  return step.group * 4 + quarter < job.p->panels->count();
}

// A tile of finished outputs, (4, 16, 16), to where they go.
void finish_tile(const Job &job, const Step &step, int64_t tile, const float *acc) {
  const Projection &p = *job.p;
  for (int64_t quarter = 0; quarter < 4 && has_panel(job, step, quarter); ++quarter) {
    const int64_t column = step.group * WIDE_COLUMNS + quarter * COLUMNS, row = tile * TILE_ROWS;
    const int64_t at = row * p.panels->rows + column;
    finish(acc + quarter * TILE_ROWS * COLUMNS,
           Corner{p.out + at, p.bias ? p.bias + column : nullptr, p.residual ? p.residual + at : nullptr, p.panels->rows,
                  std::min(TILE_ROWS, job.acts.rows - row), std::min(COLUMNS, p.panels->rows - column)});
  }
}

// Rows of a tile; where there are fewer than 16, the last one again.
template <class T>
struct TileRows {
  const T *rows[TILE_ROWS];
  TileRows(const WideActs &acts, int64_t tile) {
    for (int64_t r = 0; r < TILE_ROWS; ++r)
      rows[r] = reinterpret_cast<const T *>(acts.data + std::min(tile * TILE_ROWS + r, acts.rows - 1) * acts.stride);
  }
};

// Float32 panels. `decoded`: B is written by decode; else by the first round of multiply, from dense panels.
template <bool DECODED>
class FloatWork {
 public:
  static constexpr OperandBytes SIZE = F32_OPERANDS;
  static constexpr bool STRIPS = !DECODED;  // give the same bits

  static int64_t shared_bytes(const Job &job) { return job.tiles() * tile_bytes(job); }
  static int64_t own_bytes(const Job &job) { return B_SLOTS * slot_bytes(job) + places(job) * place_floats(job) * 4; }
  static void pack(const Job &job, int64_t tile, uint8_t *shared) {
    const TileRows<float> rows(job.acts, tile);
    puna_sme_f32_pack(rows.rows, depth(job), reinterpret_cast<float *>(shared + tile * tile_bytes(job)));
  }

  FloatWork(const Job &job, Steps &steps, const uint8_t *shared, uint8_t *own)
      : job_(job), order_(steps), a_(shared), b_(own), c_(reinterpret_cast<float *>(own + B_SLOTS * slot_bytes(job))) {}

  bool open(int64_t step) { return order_.open(step); }
  int64_t decode_items() const { return DECODED ? 4 : 1; }
  int64_t finish_items() const { return job_.tiles(); }

  void decode(int64_t number, int64_t quarter) {
    const Step step = order_.at(number);
    if (DECODED && has_panel(job_, step, quarter)) f32_operand(part_of(job_, step, quarter), quarter, b(number));
  }
  void multiply(int64_t number) {
    const Step step = order_.at(number);
    const auto *a = reinterpret_cast<const float *>(a_ + step.superblock * SUPERBLOCK * TILE_ROWS * 4);
    SmeF32 call{a, tile_bytes(job_), b(number), c(step), step.superblocks * SUPERBLOCK, job_.tiles(), !step.first, {}};
    if (DECODED) return puna_sme_f32(&call);
    for (int64_t quarter = 0; quarter < 4; ++quarter) call.panels[quarter] = part_of(job_, step, quarter).at();
    const Number number_type = job_.p->panels->shape().number;
    (number_type == Number::f32   ? puna_sme_f32_first_f32
     : number_type == Number::f16 ? puna_sme_f32_first_f16
                                  : puna_sme_f32_first_bf16)(&call);
  }
  void finish(int64_t number, int64_t tile) {
    const Step step = order_.at(number);
    if (step.last) finish_tile(job_, step, tile, c(step) + tile * TILE_FLOATS);
  }

 private:
  static int64_t depth(const Job &job) { return job.p->panels->superblocks * SUPERBLOCK; }
  static int64_t tile_bytes(const Job &job) { return depth(job) * TILE_ROWS * 4; }
  static int64_t slot_bytes(const Job &job) { return job.block.k * WIDE_COLUMNS * 4; }
  static int64_t places(const Job &job) { return 2 * job.block.columns / WIDE_COLUMNS; }
  static int64_t place_floats(const Job &job) { return job.tiles() * TILE_FLOATS; }
  float *b(int64_t step) { return reinterpret_cast<float *>(b_ + step % B_SLOTS * slot_bytes(job_)); }
  float *c(const Step &step) { return c_ + step.place * place_floats(job_); }

  const Job &job_;
  Steps &order_;
  const uint8_t *a_;
  uint8_t *b_;
  float *c_;
};

// Subscaled panels in int16. The scales of the activations lie behind the operands of their tile.
class IntegerWork {
 public:
  static constexpr OperandBytes SIZE = I16_OPERANDS;
  static constexpr bool STRIPS = true;

  static int64_t shared_bytes(const Job &job) { return job.tiles() * tile_bytes(job); }
  static int64_t own_bytes(const Job &job) {
    return B_SLOTS * slot_bytes(job) + SCALE_SLOTS * scales_bytes(job) + SUM_SLOTS * sums_bytes(job) +
           2 * job.block.columns / WIDE_COLUMNS * place_floats(job) * 4;
  }
  static void pack(const Job &job, int64_t tile, uint8_t *shared) {
    const TileRows<Acts128> rows(job.acts, tile);
    uint8_t *to = shared + tile * tile_bytes(job);
    puna_sme_i16_pack(rows.rows, blocks(job), to);
    auto *scales = reinterpret_cast<float *>(to + blocks(job) * I16_BLOCK_BYTES);
    for (int64_t i = 0; i < blocks(job) * TILE_ROWS; ++i) scales[i] = rows.rows[i % TILE_ROWS][i / TILE_ROWS].scale;
  }

  IntegerWork(const Job &job, Steps &steps, const uint8_t *shared, uint8_t *own)
      : job_(job), order_(steps), mins_(min_steps(job.p->panels->shape())), a_(shared), b_(own),
        scales_(b_ + B_SLOTS * slot_bytes(job)), sums_(scales_ + SCALE_SLOTS * scales_bytes(job)),
        c_(reinterpret_cast<float *>(sums_ + SUM_SLOTS * sums_bytes(job))) {}

  bool open(int64_t step) { return order_.open(step); }
  int64_t decode_items() const { return 4; }
  int64_t finish_items() const { return job_.tiles(); }

  void decode(int64_t number, int64_t quarter) {
    const Step step = order_.at(number);
    if (has_panel(job_, step, quarter)) i16_operand(part_of(job_, step, quarter), quarter, b(number), scales(number));
  }
  void multiply(int64_t number) {
    const Step step = order_.at(number);
    const int64_t gap = mins_ == SUM_STEPS ? PAIR_STEPS : 0, read = I16_STEPS + gap + mins_;
    const SmeI16 call{a_ + 2 * step.superblock * I16_BLOCK_BYTES, tile_bytes(job_), b(number), sums(number),
                      2 * step.superblocks, job_.tiles(), I16_STEPS, mins_, gap * I16_STEP_BYTES,
                      I16_BLOCK_BYTES - read * I16_STEP_BYTES};
    puna_sme_i16(&call);
  }
  void finish(int64_t number, int64_t tile) {
    const Step step = order_.at(number);
    const int64_t count = 2 * step.superblocks, stride = (mins_ ? 2 : 1) * TILE_FLOATS;
    const auto *act_scales = reinterpret_cast<const float *>(a_ + tile * tile_bytes(job_) + blocks(job_) * I16_BLOCK_BYTES);
    float *acc = c_ + step.place * place_floats(job_) + tile * TILE_FLOATS;
    for (int64_t quarter = 0; quarter < 4 && has_panel(job_, step, quarter); ++quarter) {
      const int64_t corner = quarter * TILE_ROWS * COLUMNS;
      add_blocks(BlockSums{sums(number) + tile * count * stride + corner, stride, mins_ > 0, scales(number),
                           quarter * COLUMNS, act_scales + 2 * step.superblock * TILE_ROWS, count},
                 step.first, acc + corner);
    }
    if (step.last) finish_tile(job_, step, tile, acc);
  }

 private:
  static int64_t blocks(const Job &job) { return 2 * job.p->panels->superblocks; }
  static int64_t tile_bytes(const Job &job) {
    return rounded_up(blocks(job) * (I16_BLOCK_BYTES + TILE_ROWS * 4), ALIGNMENT);
  }
  static int64_t deep(const Job &job) { return job.block.k / 128; }
  static int64_t slot_bytes(const Job &job) { return deep(job) * (I16_STEPS + SUM_STEPS) * 4 * I16_STEP_BYTES; }
  static int64_t scales_bytes(const Job &job) { return deep(job) * static_cast<int64_t>(sizeof(BlockScales)); }
  static int64_t sums_bytes(const Job &job) { return job.tiles() * deep(job) * 2 * TILE_FLOATS * 4; }
  static int64_t place_floats(const Job &job) { return job.tiles() * TILE_FLOATS; }
  int16_t *b(int64_t step) { return reinterpret_cast<int16_t *>(b_ + step % B_SLOTS * slot_bytes(job_)); }
  BlockScales *scales(int64_t step) {
    return reinterpret_cast<BlockScales *>(scales_ + step % SCALE_SLOTS * scales_bytes(job_));
  }
  int32_t *sums(int64_t step) { return reinterpret_cast<int32_t *>(sums_ + step % SUM_SLOTS * sums_bytes(job_)); }

  const Job &job_;
  Steps &order_;
  const int64_t mins_;
  const uint8_t *a_;
  uint8_t *b_, *scales_, *sums_;
  float *c_;
};

template <class F>
void run(const Crew &crew, int64_t units, const F &f) {
  crew.run(units, [](const void *context, int64_t unit) { (*static_cast<const F *>(context))(unit); }, &f);
}

constexpr int64_t MOST_UNITS = 8;

// The line of one unit.
template <class Work>
struct Share {
  Steps steps;
  Work work;
  Line<Work> line;
  Share(const Job &job, int64_t begin, int64_t end, const uint8_t *shared, uint8_t *own)
      : steps(job, begin, end), work(job, steps, shared, own), line(work) {}
};

// What threads do that no unit needs now: a group that no unit has opened, by the strips that few rows go through. They
// share one group, a block of rows each, so that nobody is long away from the units.
class Spare {
 public:
  Spare(const Job &job, const MatmulKernels *kernels) : job_(job), kernels_(kernels) {}

  // A block of rows, if one is left; `take` gives a group.
  template <class Take>
  bool one(const Take &take) {
    if (!kernels_) return false;
    uint64_t state = state_.load(std::memory_order_relaxed);
    while (row(state) < job_.acts.rows) {
      if (!state_.compare_exchange_weak(state, state + ROWS, std::memory_order_relaxed)) continue;
      multiply(static_cast<int64_t>(state >> 32), row(state));
      return true;
    }
    const std::optional<int64_t> group = take();
    if (!group) return false;
    const uint64_t shared = static_cast<uint64_t>(*group) << 32 | ROWS;
    const bool is_shared = state_.compare_exchange_strong(state, shared, std::memory_order_relaxed);
    const int64_t ours = is_shared ? ROWS : job_.acts.rows;  // all, if another thread was faster to share a group
    for (int64_t first = 0; first < ours; first += ROWS) multiply(*group, first);
    return true;
  }

 private:
  static constexpr int64_t ROWS = 4 * STRIP_ROWS;
  static int64_t row(uint64_t state) { return static_cast<int64_t>(state & UINT32_MAX); }

  void multiply(int64_t group, int64_t first) const {
    const Projection &p = *job_.p;
    const Panels &panels = *p.panels;
    const int64_t column = group * WIDE_COLUMNS;
    for (int64_t row = first; row < std::min(first + ROWS, job_.acts.rows); row += STRIP_ROWS) {
      const int64_t at = row * panels.rows + column;
      kernels_->strips[panels.kind](Strip{
          .panels = panels.panel(4 * group), .panel_bytes = panels.panel_bytes, .superblocks = panels.superblocks,
          .group = panels.group, .columns = std::min(WIDE_COLUMNS, panels.rows - column),
          .acts = job_.acts.data + row * job_.acts.stride, .acts_stride = job_.acts.stride,
          .rows = std::min(STRIP_ROWS, job_.acts.rows - row), .out = p.out + at, .out_stride = panels.rows,
          .bias = p.bias ? p.bias + column : nullptr, .residual = p.residual ? p.residual + at : nullptr});
    }
  }

  const Job &job_;
  const MatmulKernels *kernels_;
  std::atomic<uint64_t> state_{UINT32_MAX};  // the group in the high 32 bits, the next row in the low
};

// What a thread does that has no line of its own, or whose line is over: items of all lines, its own first; else spare ones.
template <class Work>
void help(std::optional<Share<Work>> *shares, int64_t units, int64_t me, Spare &spare) {
  const auto take = [&] {
    std::optional<int64_t> group;
    for (int64_t i = 0; i < units && !group; ++i) group = shares[(me + i) % units]->steps.groups().take();
    return group;
  };
  for (int64_t left = units; left > 0;) {
    bool helped = false;
    left = 0;
    for (int64_t i = 0; i < units; ++i) {
      Line<Work> &line = shares[(me + i) % units]->line;
      helped = line.help() || helped;
      left += !line.over();
    }
    if (!helped && !spare.one(take)) relax_core();
  }
  while (spare.one(take)) {
  }
}

template <class Work>
void drive(const Job &job, const SmeMachine &machine, int64_t units, const uint8_t *shared, uint8_t *own) {
  std::optional<Share<Work>> shares[MOST_UNITS];
  for (int64_t unit = 0; unit < units; ++unit)
    shares[unit].emplace(job, job.groups() * unit / units, job.groups() * (unit + 1) / units, shared,
                         own + unit * rounded_up(Work::own_bytes(job), ALIGNMENT));
  Spare spare(job, Work::STRIPS ? machine.strips : nullptr);
  // Units of work are claimed in ascending order, so whoever helps finds a thread at each line.
  run(machine.crew, std::max(machine.crew.threads, units), [&](int64_t me) {
    if (me < units) shares[me]->line.drive();
    help<Work>(shares, units, me, spare);
  });
}

// Rows in blocks; in each, A is packed and then all columns pass.
template <class Work>
void multiply(const Projection &p, const WideActs &acts, const SmeMachine &machine) {
  const Panels &panels = *p.panels;
  const int64_t groups = (panels.rows + WIDE_COLUMNS - 1) / WIDE_COLUMNS;
  const int64_t units = std::clamp<int64_t>(std::min(machine.units, machine.crew.threads), 1, std::min(groups, MOST_UNITS));
  const int64_t set = (groups + units * SETS - 1) / (units * SETS) * WIDE_COLUMNS;
  const Blocking block = blocking_of(machine.cache_bytes, Work::SIZE, acts.rows, set, panels.superblocks * SUPERBLOCK);
  for (int64_t row = 0; row < acts.rows; row += block.rows) {
    const int64_t at = row * panels.rows;
    const Projection moved{p.panels, p.bias, p.residual ? p.residual + at : nullptr, p.out + at};
    const Job job{&moved, {acts.data + row * acts.stride, acts.stride, std::min(block.rows, acts.rows - row)}, block};
    const int64_t shared_bytes = rounded_up(Work::shared_bytes(job), ALIGNMENT);
    uint8_t *shared = machine.scratch(shared_bytes + units * rounded_up(Work::own_bytes(job), ALIGNMENT));
    run(machine.crew, job.tiles(), [&](int64_t tile) { Work::pack(job, tile, shared); });
    drive<Work>(job, machine, units, shared, shared + shared_bytes);
  }
}

}  // namespace

void sme_dense(const Projection &p, const WideActs &acts, const SmeMachine &machine) {
  multiply<FloatWork<false>>(p, acts, machine);
}
void sme_decoded(const Projection &p, const WideActs &acts, const SmeMachine &machine) {
  multiply<FloatWork<true>>(p, acts, machine);
}
void sme_subscaled(const Projection &p, const WideActs &acts, const SmeMachine &machine) {
  multiply<IntegerWork>(p, acts, machine);
}

}  // namespace puna
