// The AVX-VNNI row of matmul kernels: the strips of AVX2 with vpdpbusd in its VEX encoding.
#include "avx2_strips.h"

namespace puna {
namespace {

// vpdpbusd: int32 sums of four products, of any 8 bits.
template <PanelKind KIND>
struct ByteDot {
  static constexpr int FITTING = 8, ZERO = KIND.zero;

  static __m256i operand(const uint8_t *planes, int i) {
    const __m256i w = codes<KIND>(planes, i);
    if constexpr (KIND.table == Table::iq4) return looked_up(IQ4, w);
    else if constexpr (KIND.table == Table::mxfp4) return looked_up(MXFP4, w);
    else return w;
  }
  static __m256i add(__m256i sum, __m256i w, __m256i q) { return _mm256_dpbusd_avx_epi32(sum, w, q); }
  static __m256i add_pairs(__m256i sum, __m256i a, __m256i b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }
  static __m256i whole(__m256i sum) { return sum; }

  // 8 scale bytes, and a sum times them.
  static __m256i scales(__m128i bytes) { return KIND.zero ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes); }
  static __m256i scaled(__m256i sum, __m256i scales) { return _mm256_mullo_epi32(sum, scales); }
};

}  // namespace

const MatmulKernels avx_vnni_matmul = all_kinds<ByteDot>(std::make_index_sequence<KIND_COUNT>{});

}  // namespace puna
