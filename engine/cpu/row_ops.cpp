// The norm as an MLX primitive.
#include "row_ops.h"

#include <algorithm>

#include "kernels.h"
#include "pool.h"

namespace puna {
namespace {

constexpr int64_t ROWS_PER_UNIT = 16;

class NormRows : public CpuPrimitive {
 public:
  NormRows(mx::Stream stream, float eps) : CpuPrimitive(stream), eps_(eps) {}

  void eval_cpu(const Arrays &in, Arrays &out) override {
    encoder_for(in, out).dispatch([x = in[0].data<float>(), w = in[1].data<float>(), y = out[0].data<float>(), eps = eps_,
                                   rows = int64_t{in[0].shape(0)}, width = int64_t{in[0].shape(1)}] {
      pool().run((rows + ROWS_PER_UNIT - 1) / ROWS_PER_UNIT, [&](int64_t unit) {
        for (int64_t r = unit * ROWS_PER_UNIT; r < std::min(rows, (unit + 1) * ROWS_PER_UNIT); ++r) {
          kernels().rows->norm(x + r * width, w, eps, width, y + r * width);
        }
      });
    });
  }
  const char *name() const override { return "PunaNorm"; }

 private:
  float eps_;
};

}  // namespace

mx::array norm(const mx::array &x, const mx::array &weight, float eps) {
  if (x.ndim() != 2 || weight.ndim() != 1 || weight.shape(0) != x.shape(1)) {
    throw std::invalid_argument("[norm] wants x (T, D) and weight (D,)");
  }
  return mx::array(x.shape(), mx::float32, std::make_shared<NormRows>(cpu_stream(), eps), {plain(x), plain(weight)});
}

}  // namespace puna
