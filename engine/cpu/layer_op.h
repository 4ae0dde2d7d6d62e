// The attention half of a layer as one MLX operation.
#pragma once

#include "attention_op.h"
#include "matmul_op.h"

namespace puna {

// The weights and biases of q, k, v and out, in this order, and the weights of the norms of heads, of both or of none.
struct AttentionWeights {
  mx::array norm;
  std::vector<Matrix> matrices;
  std::vector<Bias> biases;
  Norm q_norm, k_norm;
};

// x (T, D) + out(attention of the normed x). Keys and values of all rows are written into `pages` (see attend). Where only
// the picked rows of the plan go on, the result is theirs (P, D), one behind the other.
mx::array add_attention(const mx::array &x, const mx::array &pages, std::shared_ptr<const AttentionPlan> plan,
                        const AttentionWeights &weights, bool only_picked);

}  // namespace puna
