// The norm as an MLX primitive.
#include "row_ops.h"

#include "kernels.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"
#include "pool.h"

namespace puna {
namespace {

constexpr int64_t ROWS_PER_UNIT = 16;

class Norm : public mx::UnaryPrimitive {
 public:
  Norm(mx::Stream stream, float eps) : mx::UnaryPrimitive(stream), eps_(eps) {}

  void eval_cpu(const std::vector<mx::array> &in, mx::array &out) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    auto &encoder = mx::cpu::get_command_encoder(stream());
    encoder.set_input_array(in[0]);
    encoder.set_input_array(in[1]);
    encoder.set_output_array(out);
    encoder.dispatch([x = in[0].data<float>(), w = in[1].data<float>(), y = out.data<float>(), eps = eps_,
                      rows = int64_t{out.shape(0)}, width = int64_t{out.shape(1)}] {
      pool().run((rows + ROWS_PER_UNIT - 1) / ROWS_PER_UNIT, [&](int64_t unit) {
        for (int64_t r = unit * ROWS_PER_UNIT; r < std::min(rows, (unit + 1) * ROWS_PER_UNIT); ++r) {
          kernels().rows->norm(x + r * width, w, eps, width, y + r * width);
        }
      });
    });
  }
  void eval_gpu(const std::vector<mx::array> &, mx::array &) override { throw std::runtime_error("[norm] is a CPU operation"); }
  const char *name() const override { return "PunaNorm"; }

 private:
  float eps_;
};

}  // namespace

mx::Stream cpu_stream() { return mx::default_stream(mx::Device::cpu); }

mx::array norm(const mx::array &x, const mx::array &weight, float eps) {
  if (x.ndim() != 2 || weight.ndim() != 1 || weight.shape(0) != x.shape(1)) {
    throw std::invalid_argument("[norm] wants x (T, D) and weight (D,)");
  }
  const mx::Stream stream = cpu_stream();
  const auto plain = [&](const mx::array &a) { return mx::contiguous(mx::astype(a, mx::float32, stream), false, stream); };
  return mx::array(x.shape(), mx::float32, std::make_shared<Norm>(stream, eps), {plain(x), plain(weight)});
}

}  // namespace puna
