// A program: the SME kernels against plain loops, bit for bit. Prints what differs, and "ok" if nothing does.
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "halves.h"
#include "sme.h"

using namespace puna;

namespace {

int failures = 0;
std::mt19937 rng(1);

void want(bool holds, const char *what, int64_t a = 0, int64_t b = 0, int64_t c = 0) {
  if (holds || ++failures > 20) return;
  std::printf("%s %lld %lld %lld\n", what, static_cast<long long>(a), static_cast<long long>(b), static_cast<long long>(c));
}

// NaN is NaN whatever its payload: an outer product gives the default one.
bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

// An array with a page of canaries on both sides.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : bytes_(count * sizeof(T) + 2 * EDGE, CANARY) {}
  ~Guarded() {
    bool whole = true;
    for (size_t i = 0; i < EDGE; ++i) whole = whole && bytes_[i] == CANARY && bytes_[bytes_.size() - 1 - i] == CANARY;
    want(whole, "a write beyond an array");
  }
  T *get() { return reinterpret_cast<T *>(bytes_.data() + EDGE); }
  T &operator[](int64_t i) { return get()[i]; }

 private:
  static constexpr size_t EDGE = 4096;
  static constexpr uint8_t CANARY = 0xA5;
  std::vector<uint8_t> bytes_;
};

// Calls f with d8 to d15 filled, and looks at them afterwards.
template <class F, class... A>
void kept(F f, A... a) {
  uint64_t before[8], after[8];
  for (uint64_t &one : before) one = rng() | static_cast<uint64_t>(rng()) << 32;
  register uint64_t *from asm("x20") = before;
  register uint64_t *to asm("x21") = after;
  asm volatile("ldp d8, d9, [%0]\n ldp d10, d11, [%0, #16]\n ldp d12, d13, [%0, #32]\n ldp d14, d15, [%0, #48]" ::"r"(from)
               : "memory");
  f(a...);
  asm volatile("stp d8, d9, [%0]\n stp d10, d11, [%0, #16]\n stp d12, d13, [%0, #32]\n stp d14, d15, [%0, #48]" ::"r"(to)
               : "memory", "d8", "d9", "d10", "d11", "d12", "d13", "d14", "d15");
  want(std::memcmp(before, after, sizeof before) == 0, "d8 to d15 are not kept");
}

float number() {
  const auto kind = rng() % 400;
  if (kind == 0) return std::numeric_limits<float>::infinity();
  if (kind == 1) return std::numeric_limits<float>::quiet_NaN();
  if (kind < 40) return std::ldexp(static_cast<float>(rng() % 1000) - 500, -149);  // denormal
  if (kind < 60) return rng() % 2 ? 0.0f : -0.0f;
  const float value = std::normal_distribution<float>()(rng);
  return kind < 100 ? std::ldexp(value, -70) : value;
}

// Rows are repeated where there are fewer than 16, as the loop does it.
template <class T>
std::vector<const T *> sixteen(const T *rows, int64_t stride, int64_t tile, int64_t count) {
  std::vector<const T *> pointers;
  for (int64_t r = 0; r < TILE_ROWS; ++r) pointers.push_back(rows + std::min(tile * TILE_ROWS + r, count - 1) * stride);
  return pointers;
}

// rows x k activations times k x 64 weights, cut at `cuts` of K, the first cut by a first-round kernel if `number` says so.
void f32(int64_t rows, int64_t k, const std::vector<int64_t> &cuts, int first, bool special) {
  const int64_t tiles = (rows + 15) / 16, padded = (k + 15) / 16 * 16;
  const auto value = [&] { return special ? number() : std::normal_distribution<float>()(rng); };
  std::vector<float> x(rows * k), w(k * 64);
  for (float &v : x) v = value();
  for (float &v : w) {
    v = value();
    if (first == 1) v = from_f16(to_f16(v));
    if (first == 2) v = from_bf16(to_bf16(v));
  }
  Guarded<float> a(tiles * padded * 16), b(k * 64), c(tiles * TILE_FLOATS);
  for (int64_t t = 0; t < tiles; ++t)
    kept(puna_sme_f32_pack, sixteen(x.data(), k, t, rows).data(), k, a.get() + t * padded * 16);
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t i = 0; i < padded; ++i)
      for (int64_t r = 0; r < 16; ++r) {
        const float given = i < k ? x[std::min(t * 16 + r, rows - 1) * k + i] : 0.0f;
        want(same(a[(t * padded + i) * 16 + r], given), "packed A", t, i, r);
      }
  int64_t from = 0;
  for (const int64_t to : cuts) {
    const int64_t count = to - from;
    SmeF32 call{a.get() + from * 16, padded * 64, b.get() + from * 64, c.get(), count, tiles, from > 0, {}};
    if (first < 0) {
      std::memcpy(b.get() + from * 64, w.data() + from * 64, count * 256);
      kept(puna_sme_f32, &call);
    } else {
      // The panels hold exactly these values; reading one more would be seen by nobody, writing by the canaries.
      std::vector<uint8_t> panels[4];
      const size_t bytes = first == 0 ? 4 : 2;
      for (int p = 0; p < 4; ++p) {
        panels[p].resize(count * 16 * bytes);
        for (int64_t i = 0; i < count * 16; ++i) {
          const float v = w[(from + i / 16) * 64 + 16 * p + i % 16];
          const uint16_t half = first == 1 ? to_f16(v) : to_bf16(v);
          std::memcpy(&panels[p][i * bytes], first == 0 ? static_cast<const void *>(&v) : &half, bytes);
        }
        call.panels[p] = panels[p].data();
      }
      kept(first == 0 ? puna_sme_f32_first_f32 : first == 1 ? puna_sme_f32_first_f16 : puna_sme_f32_first_bf16, &call);
    }
    from = to;
  }
  for (int64_t i = 0; i < k * 64; ++i) want(same(b[i], w[i]), "packed B", first, i);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < 64; ++n) {
      float acc = 0;
      for (int64_t i = 0; i < k; ++i) acc = std::fma(x[r * k + i], w[i * 64 + n], acc);
      want(same(acc, c[r / 16 * TILE_FLOATS + n / 16 * 256 + r % 16 * 16 + n % 16]), "f32 rows, k, first", rows, k, first);
    }
}

// Blocks of `steps` x 2 k; with minima two steps more.
void i16(int64_t rows, int64_t blocks, int64_t steps, int64_t min_steps, int64_t gap, int64_t skipped) {
  const int64_t tiles = (rows + 15) / 16, all = steps + min_steps;
  std::vector<int16_t> x(rows * blocks * all * 2), w(blocks * all * 2 * 64);
  for (int16_t &v : x) v = static_cast<int16_t>(rng() % 255) - 127;
  for (int16_t &v : w) v = static_cast<int16_t>(rng() % 8129) - 4064;
  const int64_t a_block = (all + gap + skipped) * 32, tile_words = blocks * a_block, kinds = min_steps ? 2 : 1;
  Guarded<int16_t> a(tiles * tile_words), b(blocks * all * 128);
  Guarded<int32_t> sums(tiles * blocks * kinds * TILE_FLOATS);
  const auto step_of = [&](int64_t i) {
    const int64_t step = i / 2 % all;
    return step < steps ? step : step + gap;
  };
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t i = 0; i < blocks * all * 2; ++i)
      for (int64_t r = 0; r < 16; ++r)
        a[t * tile_words + i / (2 * all) * a_block + step_of(i) * 32 + 2 * r + i % 2] =
            x[std::min(t * 16 + r, rows - 1) * blocks * all * 2 + i];
  for (int64_t i = 0; i < blocks * all * 2; ++i)
    for (int64_t n = 0; n < 64; ++n) b[i / 2 * 128 + 2 * n + i % 2] = w[i * 64 + n];
  const SmeI16 call{a.get(), tile_words * 2, b.get(), sums.get(), blocks, tiles, steps, min_steps, gap * 64, skipped * 64};
  kept(puna_sme_i16, &call);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < 64; ++n)
      for (int64_t block = 0; block < blocks; ++block) {
        int32_t products = 0, minima = 0;
        for (int64_t i = 0; i < all * 2; ++i) {
          const int64_t k = block * all * 2 + i;
          (i < 2 * steps ? products : minima) += (i < 2 * steps ? 1 : -1) * x[r * blocks * all * 2 + k] * w[k * 64 + n];
        }
        const int32_t *got = &sums[((r / 16 * blocks + block) * kinds) * TILE_FLOATS + n / 16 * 256 + r % 16 * 16 + n % 16];
        want(got[0] == products, "products of rows, blocks, steps", rows, blocks, steps);
        if (min_steps) want(got[TILE_FLOATS] == minima, "minima of rows, blocks, steps", rows, blocks, steps);
      }
}

void i16_pack(int64_t rows, int64_t blocks) {
  const int64_t tiles = (rows + 15) / 16, tile_words = blocks * I16_BLOCK_BYTES / 2;
  std::vector<Acts128> acts(rows * blocks);
  for (Acts128 &one : acts)
    for (size_t i = 0; i < sizeof one; ++i) reinterpret_cast<uint8_t *>(&one)[i] = static_cast<uint8_t>(rng());
  Guarded<int16_t> a(tiles * tile_words);
  for (int64_t t = 0; t < tiles; ++t)
    kept(puna_sme_i16_pack, sixteen(acts.data(), blocks, t, rows).data(), blocks,
         static_cast<void *>(a.get() + t * tile_words));
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t i = 0; i < blocks * 140; ++i)
      for (int64_t r = 0; r < 16; ++r) {
        const Acts128 &one = acts[std::min(t * 16 + r, rows - 1) * blocks + i / 140];
        const int64_t at = i % 140;
        const auto given = static_cast<int16_t>(at < 128   ? one.q[at]
                                                : at < 132 ? one.negative_pairs[at - 128]
                                                           : one.negative_sums[at - 132]);
        want(a[t * tile_words + i / 140 * 70 * 32 + at / 2 * 32 + 2 * r + i % 2] == given, "packed A16", t, i, r);
      }
}

}  // namespace

int main() {
  want(puna_sme_vector_bytes() == 64, "this is for vectors of 512 bits");
  if (failures) return 1;
  for (const int64_t rows : {1, 2, 7, 15, 16, 17, 33, 63, 64, 65})
    for (const int64_t k : {1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64, 65, 127, 256}) {
      f32(rows, k, {k}, -1, false);
      if (rows % 16 == 1) f32(rows, k, {k}, static_cast<int>(k % 3), false);
    }
  for (int first = -1; first < 3; ++first) {
    f32(33, 300, {300}, first, false);
    f32(33, 300, {1, 65, 192, 300}, first, false);
    f32(17, 127, {16, 17, 127}, first, true);
    f32(5, 40, {40}, first, true);
  }
  for (const int64_t rows : {1, 5, 16, 17, 65})
    for (const int64_t blocks : {1, 2, 3}) {
      i16(rows, blocks, 64, 2, 0, 4);
      i16(rows, blocks, 64, 4, 2, 0);
      i16(rows, blocks, 64, 0, 0, 6);
      i16(rows, blocks, 16, 0, 0, 0);
      i16(rows, blocks, 7, 1, 3, 1);
      i16_pack(rows, blocks);
    }
  if (!failures) std::puts("ok");
  return failures > 0;
}
