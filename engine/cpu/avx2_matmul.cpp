// The AVX2 row of matmul kernels: products of bytes summed in int16 first.
#include <type_traits>

#include "avx2_strips.h"

namespace puna {
namespace {

constexpr Entries moved_by(const Entries &table, int difference) {
  Entries made{};
  for (int i = 0; i < 16; ++i) made[i] = static_cast<uint8_t>(table[i] + difference);
  return made;
}

// vpmaddubsw sums two products in int16, of unsigned operands that are small: their sums must not reach 2^15.
template <PanelKind KIND>
struct SmallDot {
  static constexpr bool MXFP4_TABLE = KIND.table == Table::mxfp4;  // its values are within 12, so that 16 makes them unsigned
  static constexpr int MOST = MXFP4_TABLE ? 16 + 12 : (1 << KIND.bits) - 1, ROOM = 32767 / (2 * 127 * MOST);
  static constexpr int FITTING = ROOM >= 8 ? 8 : ROOM >= 4 ? 4 : 2, ZERO = MXFP4_TABLE ? 16 : KIND.zero;
  static_assert(ROOM >= FITTING);

  static __m256i operand(const uint8_t *planes, int i) {
    static constexpr Entries entries = moved_by(MXFP4, 16 - 128);
    const __m256i w = codes<KIND>(planes, i);
    return MXFP4_TABLE ? looked_up(entries, w) : w;
  }
  static __m256i add(__m256i sum, __m256i w, __m256i q) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, q));
    asm("" : "+x"(sum));  // else GCC turns the chain into a tree, which needs more registers than there are
    return sum;
  }
  static __m256i whole(__m256i sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }

  // 8 scale bytes, each as a pair of int16, and a sum times them.
  static __m256i scales(__m128i bytes) {
    const __m128i twice = _mm_unpacklo_epi8(bytes, bytes);
    return KIND.zero ? _mm256_cvtepi8_epi16(twice) : _mm256_cvtepu8_epi16(twice);
  }
  static __m256i scaled(__m256i sum, __m256i scales) { return _mm256_madd_epi16(sum, scales); }
};

// Of 8 bits the operands are signed: the magnitude of one, at most 128, takes its sign to the activation, and two products fit in
// int16 but not four.
template <PanelKind KIND>
struct WideDot {
  static constexpr int FITTING = 8, ZERO = KIND.zero - 128;

  static __m256i operand(const uint8_t *planes, int i) {
    static constexpr Entries entries = moved_by(IQ4, -128);
    const __m256i w = codes<KIND>(planes, i);
    if constexpr (KIND.table != Table::none) return looked_up(entries, w);
    else return _mm256_xor_si256(w, _mm256_set1_epi8(-128));
  }
  static __m256i add(__m256i sum, __m256i w, __m256i q) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    asm("" : "+x"(sum));
    return sum;
  }
  static __m256i whole(__m256i sum) { return sum; }

  static __m256i scales(__m128i bytes) { return _mm256_cvtepi8_epi32(bytes); }
  static __m256i scaled(__m256i sum, __m256i scales) { return _mm256_mullo_epi32(sum, scales); }
};

template <PanelKind KIND>
struct ByteDot : std::conditional_t<KIND.bits == 8 || KIND.table == Table::iq4, WideDot<KIND>, SmallDot<KIND>> {
  static __m256i add_pairs(__m256i sum, __m256i a, __m256i b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
};

}  // namespace

const MatmulKernels avx2_matmul = all_kinds<ByteDot>(std::make_index_sequence<KIND_COUNT>{});

}  // namespace puna
