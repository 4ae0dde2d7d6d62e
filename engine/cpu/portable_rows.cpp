// Rows of activations in plain C++: the twin that defines what the others compute.
#include "lanes.h"
#include "rows.h"
#include "weigh.h"

namespace puna {
namespace {

void norm(const float *x, const float *weight, float eps, int64_t n, float *out) {
  float lanes[LANES] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i % LANES] = std::fma(x[i], x[i], lanes[i % LANES]);
  const float scale = 1.0f / std::sqrt(fold(lanes) / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void gate(const float *gate, const float *up, int64_t n, float *out) {
  for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + exp_lane(-gate[i])) * up[i];
}

}  // namespace

const RowKernels portable_rows{norm, gate, weigh<float>, weigh<double>};

}  // namespace puna
