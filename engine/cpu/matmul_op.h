// Projections, the gated MLP and the embedding as MLX operations on the CPU.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "cpu_op.h"
#include "panels.h"

namespace puna {

using Matrix = std::shared_ptr<Panels>;
using Bias = std::optional<mx::array>;
using Norm = std::optional<mx::array>;  // the weight (K,) of an RMS norm that rows go through first

// x (T, K) times each weight's transpose, plus its bias (N,) where it has one: (T, N) float32 each.
std::vector<mx::array> project(const mx::array &x, const std::vector<Matrix> &weights, const std::vector<Bias> &biases,
                               const Norm &norm, float eps);

// residual (T, N) + x W^T + bias.
mx::array add_projected(const mx::array &residual, const mx::array &x, const Matrix &weight, const Bias &bias);

// x + down(silu(gate(x)) * up(x)), gate and up of the normed x; weights and biases are those of gate, up and down.
mx::array add_gated_mlp(const mx::array &x, const std::vector<Matrix> &weights, const std::vector<Bias> &biases,
                        const Norm &norm, float eps);

// What is optional among the inputs of a primitive: the norm's weight after x, and the biases that are given, in order.
void add_norm(Arrays &inputs, const Norm &norm);
void add_biases(Arrays &inputs, const std::vector<Matrix> &weights, const std::vector<Bias> &biases);
std::vector<bool> given(const std::vector<Bias> &biases);
// The biases' data, null where there is none, from the inputs that start at `next`.
std::vector<const float *> bias_data(const Arrays &in, size_t next, const std::vector<bool> &has);

// Rows of the table (V, D) for tokens (T,) int32: (T, D) float32. A token outside the table gives NaNs.
mx::array embed(const mx::array &tokens, const Matrix &table);

// One row of the matrix as the format's reference decoder gives it.
mx::array decode_row_array(const Panels &panels, int64_t row);

}  // namespace puna
