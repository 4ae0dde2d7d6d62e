// MLX operations over rows of activations.
#pragma once

#include "cpu_op.h"

namespace puna {

// RMS norm of each row of x (T, D) with weight (D,).
mx::array norm(const mx::array &x, const mx::array &weight, float eps);

}  // namespace puna
