// The MLX primitives: shapes are checked when the graph is built, rows are plain float32 when it runs.
#include "matmul_op.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "matmul.h"
#include "pool.h"

namespace puna {
namespace {

// Inputs: x, then the norm's weight, the residual and the biases that there are.
class Project : public CpuPrimitive {
 public:
  Project(mx::Stream stream, std::vector<Matrix> weights, std::vector<bool> biased, bool normed, float eps, bool residual)
      : CpuPrimitive(stream), weights_(std::move(weights)), biased_(std::move(biased)), normed_(normed), eps_(eps),
        residual_(residual) {}

  void eval_cpu(const Arrays &in, Arrays &out) override {
    auto &encoder = encoder_for(in, out);
    const auto biases = bias_data(in, 1 + normed_ + residual_, biased_);
    std::vector<Projection> projections;
    for (size_t i = 0; i < out.size(); ++i) {
      const float *residual = residual_ ? in[1 + normed_].data<float>() : nullptr;
      projections.push_back({weights_[i].get(), biases[i], residual, out[i].data<float>()});
    }
    const Input input{in[0].data<float>(), in[0].shape(0), in[0].shape(1), normed_ ? in[1].data<float>() : nullptr, eps_};
    encoder.dispatch([projections = std::move(projections), kept = weights_, input] { matmul(input, projections); });
  }
  const char *name() const override { return "PunaProject"; }

 private:
  std::vector<Matrix> weights_;
  std::vector<bool> biased_;
  bool normed_;
  float eps_;
  bool residual_;
};

// Inputs: x, then the norm's weight and the biases that there are. Weights are gate, up and down.
class GatedMLP : public CpuPrimitive {
 public:
  GatedMLP(mx::Stream stream, std::vector<Matrix> weights, std::vector<bool> biased, bool normed, float eps)
      : CpuPrimitive(stream), weights_(std::move(weights)), biased_(std::move(biased)), normed_(normed), eps_(eps) {}

  void eval_cpu(const Arrays &in, Arrays &out) override {
    auto &encoder = encoder_in_place(in, out);
    const auto biases = bias_data(in, 1 + normed_, biased_);
    const float *const x = in[0].data<float>();
    const GatedProjections mlp{{weights_[0].get(), biases[0], nullptr, nullptr},
                               {weights_[1].get(), biases[1], nullptr, nullptr},
                               {weights_[2].get(), biases[2], x, out[0].data<float>()}};
    const Input input{x, in[0].shape(0), in[0].shape(1), normed_ ? in[1].data<float>() : nullptr, eps_};
    encoder.dispatch([mlp, kept = weights_, input] { gated_matmul(input, mlp); });
  }
  const char *name() const override { return "PunaGatedMLP"; }

 private:
  std::vector<Matrix> weights_;
  std::vector<bool> biased_;
  bool normed_;
  float eps_;
};

class Embed : public CpuPrimitive {
 public:
  Embed(mx::Stream stream, Matrix table) : CpuPrimitive(stream), table_(std::move(table)) {}

  void eval_cpu(const Arrays &in, Arrays &out) override {
    auto &encoder = encoder_for(in, out);
    encoder.dispatch([table = table_, tokens = in[0].data<int32_t>(), count = int64_t{in[0].shape(0)},
                      to = out[0].data<float>()] {
      pool().run(count, [&](int64_t i) {
        const bool known = tokens[i] >= 0 && tokens[i] < table->rows;
        if (known) decode_row(*table, tokens[i], to + i * table->cols);
        else std::fill_n(to + i * table->cols, table->cols, std::numeric_limits<float>::quiet_NaN());
      });
    });
  }
  const char *name() const override { return "PunaEmbed"; }

 private:
  Matrix table_;
};

void want(bool holds, const char *what) {
  if (!holds) throw std::invalid_argument(what);
}

void check_input(const mx::array &x, const Panels &weight) {
  want(x.ndim() == 2 && x.shape(1) == weight.cols, "[project] x is (T, K), K the columns of every weight");
}

mx::Shape output_shape(const mx::array &x, const Panels &weight) { return {x.shape(0), static_cast<int>(weight.rows)}; }

}  // namespace

void add_norm(Arrays &inputs, const Norm &norm) {
  if (!norm) return;
  want(norm->ndim() == 1 && norm->shape(0) == inputs[0].shape(1), "[norm] wants x (T, D) and weight (D,)");
  inputs.push_back(plain(*norm));
}

void add_biases(Arrays &inputs, const std::vector<Matrix> &weights, const std::vector<Bias> &biases) {
  want(weights.size() == biases.size(), "[project] one bias, or none, for each weight");
  for (size_t i = 0; i < biases.size(); ++i) {
    if (!biases[i]) continue;
    want(biases[i]->ndim() == 1 && biases[i]->shape(0) == weights[i]->rows, "[project] a bias is (N,)");
    inputs.push_back(plain(*biases[i]));
  }
}

std::vector<bool> given(const std::vector<Bias> &biases) {
  std::vector<bool> has;
  for (const Bias &bias : biases) has.push_back(bias.has_value());
  return has;
}

std::vector<const float *> bias_data(const Arrays &in, size_t next, const std::vector<bool> &has) {
  std::vector<const float *> data;
  for (const bool one : has) data.push_back(one ? in[next++].data<float>() : nullptr);
  return data;
}

std::vector<mx::array> project(const mx::array &x, const std::vector<Matrix> &weights, const std::vector<Bias> &biases,
                               const Norm &norm, float eps) {
  std::vector<mx::Shape> shapes;
  for (const Matrix &weight : weights) {
    check_input(x, *weight);
    shapes.push_back(output_shape(x, *weight));
  }
  Arrays inputs{plain(x)};
  add_norm(inputs, norm);
  add_biases(inputs, weights, biases);
  auto primitive = std::make_shared<Project>(cpu_stream(), weights, given(biases), norm.has_value(), eps, false);
  return mx::array::make_arrays(shapes, std::vector<mx::Dtype>(weights.size(), mx::float32), primitive, inputs);
}

mx::array add_projected(const mx::array &residual, const mx::array &x, const Matrix &weight, const Bias &bias) {
  check_input(x, *weight);
  want(residual.shape() == output_shape(x, *weight), "[add_projected] residual is (T, N)");
  Arrays inputs{plain(x), plain(residual)};
  add_biases(inputs, {weight}, {bias});
  auto primitive = std::make_shared<Project>(cpu_stream(), std::vector{weight}, given({bias}), false, 0.0f, true);
  return mx::array(output_shape(x, *weight), mx::float32, primitive, inputs);
}

mx::array add_gated_mlp(const mx::array &x, const std::vector<Matrix> &weights, const std::vector<Bias> &biases,
                        const Norm &norm, float eps) {
  want(weights.size() == 3, "[add_gated_mlp] weights are gate, up and down");
  check_input(x, *weights[0]);
  check_input(x, *weights[1]);
  const bool chained = weights[0]->rows == weights[1]->rows && weights[1]->rows == weights[2]->cols;
  want(chained, "[add_gated_mlp] hidden widths differ");
  want(weights[2]->rows == x.shape(1), "[add_gated_mlp] down leads back to the width of x");
  Arrays inputs{plain(x)};
  add_norm(inputs, norm);
  add_biases(inputs, weights, biases);
  auto primitive = std::make_shared<GatedMLP>(cpu_stream(), weights, given(biases), norm.has_value(), eps);
  return mx::array(x.shape(), mx::float32, primitive, inputs);
}

mx::array embed(const mx::array &tokens, const Matrix &table) {
  want(tokens.ndim() == 1, "[embed] tokens is (T,)");
  return mx::array({tokens.shape(0), static_cast<int>(table->cols)}, mx::float32,
                   std::make_shared<Embed>(cpu_stream(), table), {plain(tokens, mx::int32)});
}

mx::array decode_row_array(const Panels &panels, int64_t row) {
  want(row >= 0 && row < panels.rows, "[decode_row] no such row");
  std::vector<float> values(panels.cols);
  decode_row(panels, row, values.data());
  return mx::array(values.data(), {static_cast<int>(panels.cols)}, mx::float32);
}

}  // namespace puna
