// Norm, projections, attention and the way back to the residual stream, in scratch that all layers share.
#include "layer_op.h"

#include <algorithm>

#include "matmul.h"
#include "scratch.h"

namespace puna {
namespace {

enum { Q, K, V, OUT };

// Raw pointers of one call. x may be `out` where all rows go on.
struct Call {
  std::shared_ptr<const AttentionPlan> plan;
  std::vector<Matrix> weights;
  std::vector<const float *> biases;
  const float *x, *norm, *q_norm, *k_norm;
  char *pages;
  KV format;
  bool only_picked;
  float *out;

  int64_t width() const { return weights[OUT]->rows; }
  Projection to(int which, float *y) const { return {weights[which].get(), biases[which], nullptr, y}; }
};

// The picked rows lie in `out`, where they are queries' input first and the residual in the end.
void gather_picked(const Call &c) {
  for (const Rows &row : c.plan->picked) std::copy_n(c.x + row.begin * c.width(), c.width(), c.out + row.at * c.width());
}

void run(const Call &c) {
  thread_local Scratch queries, keys, values, attended;
  const int64_t all = c.plan->rows(), going_on = c.only_picked ? c.plan->picked.size() : all;
  float *const q = queries.floats(going_on * c.weights[Q]->rows), *const k = keys.floats(all * c.weights[K]->rows);
  float *const v = values.floats(all * c.weights[V]->rows), *const y = attended.floats(going_on * c.weights[OUT]->cols);
  const Projection projections[] = {c.to(K, k), c.to(V, v), c.to(Q, q)};
  const Input input{c.x, all, c.width(), c.norm, c.plan->eps};
  if (c.only_picked) {
    gather_picked(c);
    matmul(input, {projections, 2});
    matmul({c.out, going_on, c.width(), c.norm, c.plan->eps}, {projections + 2, 1});
  } else {
    matmul(input, projections);
  }
  run_attention({*c.plan, c.only_picked ? c.plan->picked : c.plan->tiles, q, k, v, c.q_norm, c.k_norm, c.pages, c.format, y});
  Projection back = c.to(OUT, c.out);
  back.residual = c.only_picked ? c.out : c.x;
  matmul({y, going_on, c.weights[OUT]->cols}, {&back, 1});
}

// Inputs: x, the norm's weight, the biases and the norms of heads that there are, then rope and pages.
class AddAttention : public CpuPrimitive {
 public:
  AddAttention(mx::Stream stream, std::shared_ptr<const AttentionPlan> plan, const AttentionWeights &weights, bool only_picked)
      : CpuPrimitive(stream), plan_(std::move(plan)), matrices_(weights.matrices), biased_(given(weights.biases)),
        head_norms_(weights.q_norm), only_picked_(only_picked) {}

  void eval_cpu(const Arrays &in, Arrays &out) override {
    auto &encoder = only_picked_ ? encoder_for(in, out) : encoder_in_place(in, out);
    const size_t norms = in.size() - 4;
    const auto norm_at = [&](size_t i) { return head_norms_ ? in[norms + i].data<float>() : nullptr; };
    encoder.dispatch([call = Call{plan_, matrices_, bias_data(in, 2, biased_), in[0].data<float>(), in[1].data<float>(),
                                  norm_at(0), norm_at(1), const_cast<char *>(in.back().data<char>()),
                                  kv_format(in.back().dtype()), only_picked_, out[0].data<float>()}] { run(call); });
  }
  const char *name() const override { return "PunaAttention"; }

 private:
  std::shared_ptr<const AttentionPlan> plan_;
  std::vector<Matrix> matrices_;
  std::vector<bool> biased_;
  bool head_norms_, only_picked_;
};

void require(bool holds, const char *what) {
  if (!holds) throw std::invalid_argument(std::string("[add_attention] ") + what);
}

void check(const mx::array &x, const mx::array &pages, const AttentionPlan &plan, const AttentionWeights &w) {
  require(w.matrices.size() == 4, "weights are q, k, v and out");
  const AttentionShape &s = plan.shape;
  const int64_t wide = s.heads * s.head_dim, narrow = s.kv_heads * s.head_dim, width = w.matrices[OUT]->rows;
  require(x.ndim() == 2 && x.shape(0) == plan.rows() && x.shape(1) == width, "x is (T, D), D the rows of out");
  for (const int which : {Q, K, V}) {
    require(w.matrices[which]->cols == width && w.matrices[which]->rows == (which == Q ? wide : narrow), "heads differ");
  }
  require(w.matrices[OUT]->cols == wide, "out takes all heads");
  check_pages(plan, pages);
}

}  // namespace

mx::array add_attention(const mx::array &x, const mx::array &pages, std::shared_ptr<const AttentionPlan> plan,
                        const AttentionWeights &weights, bool only_picked) {
  check(x, pages, *plan, weights);
  Arrays in{plain(x)};
  add_norm(in, weights.norm);
  add_biases(in, weights.matrices, weights.biases);
  require(weights.q_norm.has_value() == weights.k_norm.has_value(), "norms both q and k or neither");
  if (weights.q_norm) in.insert(in.end(), {plain(*weights.q_norm), plain(*weights.k_norm)});
  in.insert(in.end(), {plan->rope, pages});
  const int rows = only_picked ? static_cast<int>(plan->picked.size()) : x.shape(0);
  auto primitive = std::make_shared<AddAttention>(cpu_stream(), std::move(plan), weights, only_picked);
  return mx::array({rows, x.shape(1)}, mx::float32, primitive, std::move(in));
}

}  // namespace puna
