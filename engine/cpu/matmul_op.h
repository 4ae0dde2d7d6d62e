// Projections, the gated MLP and the embedding as MLX operations on the CPU.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "mlx/mlx.h"
#include "panels.h"

namespace puna {

namespace mx = mlx::core;

using Matrix = std::shared_ptr<Panels>;
using Bias = std::optional<mx::array>;

// x (T, K) times each weight's transpose, plus its bias (N,) where it has one: (T, N) float32 each.
std::vector<mx::array> project(const mx::array &x, const std::vector<Matrix> &weights, const std::vector<Bias> &biases);

// residual (T, N) + x W^T + bias.
mx::array add_projected(const mx::array &residual, const mx::array &x, const Matrix &weight, const Bias &bias);

// residual + down(silu(gate(x)) * up(x)); weights and biases are those of gate, up and down.
mx::array add_gated_mlp(const mx::array &residual, const mx::array &x, const std::vector<Matrix> &weights,
                        const std::vector<Bias> &biases);

// Rows of the table (V, D) for tokens (T,) int32: (T, D) float32. A token outside the table gives NaNs.
mx::array embed(const mx::array &tokens, const Matrix &table);

// One row of the matrix as the format's reference decoder gives it.
mx::array decode_row_array(const Panels &panels, int64_t row);

}  // namespace puna
