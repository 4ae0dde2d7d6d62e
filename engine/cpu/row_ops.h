// MLX operations over rows of activations.
#pragma once

#include "mlx/mlx.h"

namespace puna {

namespace mx = mlx::core;

// RMS norm of each row of x (T, D) with weight (D,).
mx::array norm(const mx::array &x, const mx::array &weight, float eps);

// The stream that all of Puna's CPU operations run on.
mx::Stream cpu_stream();

}  // namespace puna
