// The AVX2 row of matmul kernels: products of bytes summed in int16 first.
#include "avx2_strips.h"

namespace puna {
namespace {

// vpmaddubsw: int16 sums of two products, which must not reach 2^15. A code of 8 bits is taken as two of 4, its high half
// counting 16 times: that is as many multiplications as one vpmaddubsw of magnitudes with a vpmaddwd after it, and less else.
template <PanelKind KIND>
struct ByteDot {
  static constexpr bool SPLIT = KIND.bits == 8 || KIND.table == Table::iq4;
  static constexpr bool SMALL = KIND.table == Table::mxfp4;  // its values are within 12, so that 16 makes them unsigned
  static constexpr int MOST = SPLIT ? 15 : SMALL ? 16 + 12 : (1 << KIND.bits) - 1;
  static constexpr int ROOM = 32767 / (2 * 127 * MOST);
  static constexpr int OPERANDS = SPLIT ? 16 : 8, FITTING = ROOM >= 8 ? 8 : ROOM >= 4 ? 4 : 2, WEIGHT[] = {1, 16};
  static constexpr int ZERO = SMALL ? 16 : KIND.zero;
  static_assert(ROOM >= FITTING);

  static constexpr Entries entries(const Entries &table, int part) {
    Entries made{};
    for (int i = 0; i < 16; ++i) made[i] = SMALL ? table[i] - 128 + 16 : part ? table[i] >> 4 : table[i] & 15;
    return made;
  }
  static __m256i operand(const uint8_t *planes, int i) {
    const __m256i w = codes<KIND>(planes, i % 8);
    if constexpr (KIND.table == Table::iq4) {
      static constexpr Entries low = entries(IQ4, 0), high = entries(IQ4, 1);
      return looked_up(i < 8 ? low : high, w);
    } else if constexpr (SMALL) {
      static constexpr Entries small = entries(MXFP4, 0);
      return looked_up(small, w);
    } else if constexpr (SPLIT) {
      return moved(w, i < 8 ? 0 : -4, 15);
    } else {
      return w;
    }
  }
  static __m256i add(__m256i sum, __m256i w, __m256i q) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, q)); }
  static __m256i add_pairs(__m256i sum, __m256i a, __m256i b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
  static __m256i whole(__m256i sum, int part) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(WEIGHT[part])); }

  // 8 scale bytes, each as a pair of int16, and a sum times them.
  static __m256i scales(__m128i bytes) {
    const __m128i twice = _mm_unpacklo_epi8(bytes, bytes);
    return KIND.zero ? _mm256_cvtepi8_epi16(twice) : _mm256_cvtepu8_epi16(twice);
  }
  static __m256i scaled(__m256i sum, __m256i scales, int part) {
    return _mm256_madd_epi16(sum, part ? _mm256_slli_epi16(scales, 4) : scales);  // 128 x 16 fits
  }
};

}  // namespace

const MatmulKernels avx2_matmul = all_kinds<ByteDot>(std::make_index_sequence<KIND_COUNT>{});

}  // namespace puna
