// The MLX primitives: shapes are checked when the graph is built, rows are plain float32 when it runs.
#include "matmul_op.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "matmul.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"
#include "pool.h"
#include "row_ops.h"

namespace puna {
namespace {

using Arrays = std::vector<mx::array>;

// What all of these are: a task on the stream's thread, which owns the pool while it runs.
class CpuPrimitive : public mx::Primitive {
 public:
  using mx::Primitive::Primitive;
  void eval_gpu(const Arrays &, Arrays &) override {
    throw std::runtime_error(std::string(name()) + " is a CPU operation");
  }

 protected:
  // Allocates the outputs and gives the encoder that the task goes to. MLX keeps inputs and outputs alive meanwhile.
  mx::cpu::CommandEncoder &encoder_for(const Arrays &in, Arrays &out) {
    auto &encoder = mx::cpu::get_command_encoder(stream());
    for (const mx::array &a : in) encoder.set_input_array(a);
    for (mx::array &a : out) {
      a.set_data(mx::allocator::malloc(a.nbytes()));
      encoder.set_output_array(a);
    }
    return encoder;
  }
};

// Which optional biases are given; those follow the other inputs of a primitive in order.
std::vector<bool> given(const std::vector<Bias> &biases) {
  std::vector<bool> has;
  for (const Bias &bias : biases) has.push_back(bias.has_value());
  return has;
}

// The biases' data, null where there is none, from the inputs that start at `next`.
std::vector<const float *> bias_data(const Arrays &in, size_t next, const std::vector<bool> &has) {
  std::vector<const float *> data;
  for (const bool one : has) data.push_back(one ? in[next++].data<float>() : nullptr);
  return data;
}

// Inputs: x, then biases; with a residual it is between them.
class Project : public CpuPrimitive {
 public:
  Project(mx::Stream stream, std::vector<Matrix> weights, std::vector<bool> biased, bool residual)
      : CpuPrimitive(stream), weights_(std::move(weights)), biased_(std::move(biased)), residual_(residual) {}

  void eval_cpu(const Arrays &in, Arrays &out) override {
    auto &encoder = encoder_for(in, out);
    const auto biases = bias_data(in, residual_ ? 2 : 1, biased_);
    std::vector<Projection> projections;
    for (size_t i = 0; i < out.size(); ++i) {
      const float *residual = residual_ ? in[1].data<float>() : nullptr;
      projections.push_back({weights_[i].get(), biases[i], residual, out[i].data<float>()});
    }
    encoder.dispatch([projections = std::move(projections), kept = weights_, x = in[0].data<float>(),
                      rows = int64_t{in[0].shape(0)}, cols = int64_t{in[0].shape(1)}] {
      matmul(x, rows, cols, projections);
    });
  }
  const char *name() const override { return "PunaProject"; }

 private:
  std::vector<Matrix> weights_;
  std::vector<bool> biased_;
  bool residual_;
};

// Inputs: x, residual, then biases. Weights are gate, up and down.
class GatedMLP : public CpuPrimitive {
 public:
  GatedMLP(mx::Stream stream, std::vector<Matrix> weights, std::vector<bool> biased)
      : CpuPrimitive(stream), weights_(std::move(weights)), biased_(std::move(biased)) {}

  void eval_cpu(const Arrays &in, Arrays &out) override {
    auto &encoder = encoder_for(in, out);
    const auto biases = bias_data(in, 2, biased_);
    const GatedProjections mlp{{weights_[0].get(), biases[0], nullptr, nullptr},
                               {weights_[1].get(), biases[1], nullptr, nullptr},
                               {weights_[2].get(), biases[2], in[1].data<float>(), out[0].data<float>()}};
    encoder.dispatch([mlp, kept = weights_, x = in[0].data<float>(), rows = int64_t{in[0].shape(0)},
                      cols = int64_t{in[0].shape(1)}] { gated_matmul(x, rows, cols, mlp); });
  }
  const char *name() const override { return "PunaGatedMLP"; }

 private:
  std::vector<Matrix> weights_;
  std::vector<bool> biased_;
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

mx::array plain(const mx::array &a, mx::Dtype dtype = mx::float32) {
  return mx::contiguous(mx::astype(a, dtype, cpu_stream()), false, cpu_stream());
}

void want(bool holds, const char *what) {
  if (!holds) throw std::invalid_argument(what);
}

void check_input(const mx::array &x, const Panels &weight) {
  want(x.ndim() == 2 && x.shape(1) == weight.cols, "[project] x is (T, K), K the columns of every weight");
}

// Appends the biases that are given, as plain rows.
void add_biases(Arrays &inputs, const std::vector<Matrix> &weights, const std::vector<Bias> &biases) {
  want(weights.size() == biases.size(), "[project] one bias, or none, for each weight");
  for (size_t i = 0; i < biases.size(); ++i) {
    if (!biases[i]) continue;
    want(biases[i]->ndim() == 1 && biases[i]->shape(0) == weights[i]->rows, "[project] a bias is (N,)");
    inputs.push_back(plain(*biases[i]));
  }
}

mx::Shape output_shape(const mx::array &x, const Panels &weight) { return {x.shape(0), static_cast<int>(weight.rows)}; }

void check_residual(const mx::array &residual, const mx::array &x, const Panels &weight) {
  want(residual.shape() == output_shape(x, weight), "[add_projected] residual is (T, N)");
}

}  // namespace

std::vector<mx::array> project(const mx::array &x, const std::vector<Matrix> &weights,
                               const std::vector<Bias> &biases) {
  std::vector<mx::Shape> shapes;
  for (const Matrix &weight : weights) {
    check_input(x, *weight);
    shapes.push_back(output_shape(x, *weight));
  }
  Arrays inputs{plain(x)};
  add_biases(inputs, weights, biases);
  auto primitive = std::make_shared<Project>(cpu_stream(), weights, given(biases), false);
  return mx::array::make_arrays(shapes, std::vector<mx::Dtype>(weights.size(), mx::float32), primitive, inputs);
}

mx::array add_projected(const mx::array &residual, const mx::array &x, const Matrix &weight, const Bias &bias) {
  check_input(x, *weight);
  check_residual(residual, x, *weight);
  Arrays inputs{plain(x), plain(residual)};
  add_biases(inputs, {weight}, {bias});
  auto primitive = std::make_shared<Project>(cpu_stream(), std::vector{weight}, given({bias}), true);
  return mx::array(output_shape(x, *weight), mx::float32, primitive, inputs);
}

mx::array add_gated_mlp(const mx::array &residual, const mx::array &x, const std::vector<Matrix> &weights,
                        const std::vector<Bias> &biases) {
  want(weights.size() == 3, "[add_gated_mlp] weights are gate, up and down");
  check_input(x, *weights[0]);
  check_input(x, *weights[1]);
  const bool chained = weights[0]->rows == weights[1]->rows && weights[1]->rows == weights[2]->cols;
  want(chained, "[add_gated_mlp] hidden widths differ");
  check_residual(residual, x, *weights[2]);
  Arrays inputs{plain(x), plain(residual)};
  add_biases(inputs, weights, biases);
  auto primitive = std::make_shared<GatedMLP>(cpu_stream(), weights, given(biases));
  return mx::array(output_shape(x, *weights[2]), mx::float32, primitive, inputs);
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
