// A program: one call of an SME kernel, for its instructions to be counted. Arguments: kernel, rows, k, option (whether to
// go on, or the steps of minima). Prints where the kernel lies.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sme.h"

using namespace puna;

namespace {

// Whatever lies there: no instruction depends on it.
template <class T>
T *some(int64_t count) {
  return static_cast<T *>(std::malloc(count * sizeof(T)));
}

template <class Call>
void run(void (*kernel)(const Call *), const Call &call) {
  std::printf("%p\n", reinterpret_cast<void *>(kernel));
  kernel(&call);
}

// `carry`: the second of two blocks of K.
void f32(void (*kernel)(const SmeF32 *), int64_t rows, int64_t k, int64_t carry) {
  const int64_t tiles = rows / TILE_ROWS;
  const void *panel = some<float>(k * 16);
  run(kernel, SmeF32{some<float>(rows * k), k * TILE_ROWS * 4, some<float>(k * WIDE_COLUMNS),
                     some<float>(tiles * TILE_FLOATS), k, tiles, carry, {panel, panel, panel, panel}});
}

// As the loop around it calls it.
void i16(int64_t rows, int64_t k, int64_t mins) {
  const int64_t tiles = rows / TILE_ROWS, blocks = k / 128, gap = mins == SUM_STEPS ? PAIR_STEPS : 0;
  const int64_t read = I16_STEPS + gap + mins;
  run(puna_sme_i16, SmeI16{some<uint8_t>(tiles * blocks * I16_BLOCK_BYTES), blocks * I16_BLOCK_BYTES,
                           some<uint8_t>(blocks * (I16_STEPS + mins) * 4 * I16_STEP_BYTES),
                           some<int32_t>(tiles * blocks * 2 * TILE_FLOATS), blocks, tiles, I16_STEPS, mins,
                           gap * I16_STEP_BYTES, I16_BLOCK_BYTES - read * I16_STEP_BYTES});
}

template <class T, class To>
void pack(void (*kernel)(const T *const *, int64_t, To *), int64_t length, int64_t count, int64_t to_bytes) {
  const T *rows[TILE_ROWS];
  for (const T *&row : rows) row = some<T>(length);
  std::printf("%p\n", reinterpret_cast<void *>(kernel));
  kernel(rows, count, reinterpret_cast<To *>(some<uint8_t>(to_bytes)));
}

}  // namespace

int main(int, char **arguments) {
  const char *kernel = arguments[1];
  const int64_t rows = std::atoi(arguments[2]), k = std::atoi(arguments[3]), option = std::atoi(arguments[4]);
  const auto is = [&](const char *name) { return std::strcmp(kernel, name) == 0; };
  if (is("puna_sme_f32")) f32(puna_sme_f32, rows, k, option);
  if (is("puna_sme_f32_first_f32")) f32(puna_sme_f32_first_f32, rows, k, option);
  if (is("puna_sme_f32_first_f16")) f32(puna_sme_f32_first_f16, rows, k, option);
  if (is("puna_sme_f32_first_bf16")) f32(puna_sme_f32_first_bf16, rows, k, option);
  if (is("puna_sme_i16")) i16(rows, k, option);
  if (is("puna_sme_f32_pack")) pack(puna_sme_f32_pack, k, k, k * TILE_ROWS * 4);
  if (is("puna_sme_i16_pack")) pack(puna_sme_i16_pack, k / 128, k / 128, k / 128 * I16_BLOCK_BYTES);
}
