// What our MLX operations have in common: a task on the stream's thread, over rows that lie plainly in memory.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"

namespace puna {

namespace mx = mlx::core;

using Arrays = std::vector<mx::array>;

// The stream that all of Puna's CPU operations run on.
inline mx::Stream cpu_stream() { return mx::default_stream(mx::Device::cpu); }

// The task owns the pool while it runs. Its outputs are plain.
class CpuPrimitive : public mx::Primitive {
 public:
  using mx::Primitive::Primitive;
  void eval_gpu(const Arrays &, Arrays &) override {
    throw std::runtime_error(std::string(name()) + " is a CPU operation");
  }

 protected:
  // Allocates the outputs and gives the encoder that the task goes to. MLX keeps inputs and outputs alive meanwhile.
  mx::cpu::CommandEncoder &encoder_for(const Arrays &in, Arrays &out) {
    for (mx::array &a : out) a.set_data(mx::allocator::malloc(a.nbytes()));
    return encoder_with(in, out);
  }
  // The output takes the place of the first input, where nobody else has that.
  mx::cpu::CommandEncoder &encoder_in_place(const Arrays &in, Arrays &out) {
    if (in[0].is_donatable() && in[0].nbytes() == out[0].nbytes()) out[0].copy_shared_buffer(in[0]);
    else out[0].set_data(mx::allocator::malloc(out[0].nbytes()));
    return encoder_with(in, out);
  }

 private:
  mx::cpu::CommandEncoder &encoder_with(const Arrays &in, Arrays &out) {
    auto &encoder = mx::cpu::get_command_encoder(stream());
    for (const mx::array &a : in) encoder.set_input_array(a);
    for (mx::array &a : out) encoder.set_output_array(a);
    return encoder;
  }
};

// The array with rows one behind the other. What our own operations give is so already, and costs the graph no node.
inline mx::array plain(const mx::array &a, mx::Dtype dtype = mx::float32) {
  if (a.dtype() == dtype) {
    const bool ours = a.has_primitive() && dynamic_cast<const CpuPrimitive *>(&a.primitive());
    if (ours || (a.is_available() && a.flags().row_contiguous)) return a;
  }
  return mx::contiguous(mx::astype(a, dtype, cpu_stream()), false, cpu_stream());
}

}  // namespace puna
